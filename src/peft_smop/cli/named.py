"""What a user named, looked up before anything heavy is imported; and a run's own name."""

from __future__ import annotations

from pathlib import Path

from peft_smop.errors import CheckpointError, ConfigError
from peft_smop.names import options_in


def check_path(path: Path) -> None:
    """Refuse a path that can hold nothing trained.

    Raises:
        CheckpointError: there is no such directory.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a directory; expected a run's or a saved adapter's")


def names_in(methods: str) -> list[str]:
    """The methods of a list with commas.

    Raises:
        ConfigError: there is none, one that is unknown, or an option of one that cannot be.
    """
    names = [name.strip() for name in methods.split(",") if name.strip()]
    if not names:
        raise ConfigError("--methods names no method; see smop methods")
    for name in names:
        options_in(name)
    return names


def default_name(task: str, model: str, method: str, seed: int) -> str:
    """A run's directory when none is given."""
    # not Path.stem, which would cut Llama-3.2-1B at its dot
    task = Path(task).name.removesuffix(".yaml").removesuffix(".yml")
    model = Path(model).name.removesuffix(".gguf")
    return "-".join([task, model, method.replace(":", "-"), f"s{seed}"])
