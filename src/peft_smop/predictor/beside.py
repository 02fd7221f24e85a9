"""What stands beside a saved adapter, so that its directory is enough to answer with.

ADAPTER/predictor.json     the task, the backbone and how one is put to the other
ADAPTER/tokenizer.json     and its like: the tokenizer
ADAPTER/README.md          the model card
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from peft_smop.embedded import MODEL_DIR, MODEL_NAME
from peft_smop.errors import CheckpointError, ConfigError
from peft_smop.plain_yaml import read_yaml
from peft_smop.tasks import Task

NAME = "predictor.json"
FORMAT_VERSION = 1
_KEYS = {"task", "backbone", "max_length", "precision", "prompt_length"}


@dataclass(frozen=True)
class Beside:
    """How a task is put to a backbone with an adapter."""

    task: Task
    backbone: str
    """A name that `load_backbone` takes; of a local model the absolute path."""
    max_length: int = 512
    precision: str = "auto"
    prompt_length: int = 0
    """Virtual tokens before an input, for backbones with a fixed number of positions."""

    def save(self, directory: Path) -> None:
        """Write it into an adapter's directory."""
        content = {"format_version": FORMAT_VERSION, **asdict(self)}
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (directory / NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, adapter: Path, *, run: Path | None = None) -> Beside | None:
        """Read what stands beside an adapter, or around it in a run of an earlier version.

        Returns:
            None where there is nothing of the kind.

        Raises:
            CheckpointError: there is, and it cannot be read.
        """
        path = adapter / NAME
        if path.is_file():
            content = _mapping(path, json.loads)
            version = content.pop("format_version", None)
            if version != FORMAT_VERSION or set(content) != _KEYS:
                raise CheckpointError(
                    f"{path} is of format {version!r} with {', '.join(sorted(content))}; expected"
                    f" format {FORMAT_VERSION} with {', '.join(sorted(_KEYS))}"
                )
            return cls(task=_task(path, content.pop("task")), **_checked(path, content))
        if run is None or not (run / "task.json").is_file():
            return None
        task = _task(run / "task.json", _mapping(run / "task.json", json.loads))
        spec = _mapping(run / "spec.yaml", read_yaml)
        training, method = spec.get("training", {}), spec.get("method", {})
        content = {
            "backbone": located(str(spec.get("model", ""))),
            "max_length": training.get("max_length", cls.max_length),
            "precision": training.get("precision", cls.precision),
            "prompt_length": method.get("num_virtual_tokens") or 5,
        }
        return cls(task=task, **_checked(run / "spec.yaml", content))


def save_beside(directory: Path, beside: Beside, tokenizer: PreTrainedTokenizerBase) -> None:
    """Complete an adapter's directory.

    Args:
        directory: where the adapter is saved.
        beside: how its task is put to its backbone.
        tokenizer: the backbone's.
    """
    tokenizer.save_pretrained(str(directory))
    beside.save(directory)


def located(model: str) -> str:
    """A backbone's name that holds in any working directory."""
    if model == MODEL_NAME or Path(model) == MODEL_DIR:
        return MODEL_NAME
    return str(Path(model).resolve()) if Path(model).exists() else model


def is_control(run: Path) -> bool:
    """Whether a run's rows were told their prompts, which nobody tells an input."""
    path = run / "spec.yaml"
    method = _mapping(path, read_yaml).get("method", {}) if path.is_file() else {}
    return isinstance(method, dict) and method.get("name") == "told"


def _mapping(path: Path, parse: Any) -> dict[str, Any]:
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no mapping; expected what was saved")
    return content


def _task(path: Path, content: Any) -> Task:
    try:
        fields: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
        return Task(**fields)
    except (ConfigError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read as a task: {error}") from error


def _checked(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    kinds = {"backbone": str, "max_length": int, "precision": str, "prompt_length": int}
    for key, kind in kinds.items():
        if not isinstance(content[key], kind) or isinstance(content[key], bool):
            raise CheckpointError(
                f"{path}: {key} is {content[key]!r}; expected a {kind.__name__}, as it was saved"
            )
    return content
