"""SuperGLUE by the `datasets` library of Hugging Face."""

from __future__ import annotations

from collections.abc import Iterable

from peft_smop.errors import ConfigError
from peft_smop.tasks.reading import Row
from peft_smop.tasks.task import Task

REPOSITORY = "aps/super_glue"
_INSTEAD = "give --data DIR with the official files, or use task medley, which needs no download"


def read_hub(
    task: Task, parts: Iterable[str], repository: str = REPOSITORY
) -> dict[str, list[Row]]:
    """Read rows as the hub keeps them: labels as class numbers, MultiRC flat already.

    Args:
        task: its name is that of the configuration in the repository.
        parts: the splits to read.
        repository: on the hub, or a local folder laid out as one.

    Raises:
        ConfigError: where the library is not installed, or the repository cannot be reached or
            has other labels than the task.
    """
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            f"reading {task.name} from the hub needs the library datasets; "
            f"pip install 'peft-smop[data]', or {_INSTEAD}"
        ) from error
    rows = {}
    for part in parts:
        try:
            table = datasets.load_dataset(repository, task.name, split=part)
        except Exception as error:  # offline, refused, moved: the library has no common base
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise ConfigError(
                f"cannot read {task.name} ({part}) from {repository} ({reason}); {_INSTEAD}"
            ) from error
        names = getattr(table.features.get("label"), "names", None)
        if names is not None and tuple(names) != task.verbalizers:
            raise ConfigError(
                f"{repository} has the labels {names} for {task.name}, expected "
                f"{list(task.verbalizers)}; {_INSTEAD}"
            )
        source = f"{repository}/{task.name}/{part}"
        rows[part] = [
            Row(_as_in_the_files(fields, task), source, number, has_lines=False)
            for number, fields in enumerate(table, start=1)
        ]
    return rows


def _as_in_the_files(fields: dict[str, object], task: Task) -> dict[str, object]:
    label, index = fields.get("label"), fields.get("idx")
    if isinstance(label, int) and 0 <= label < len(task.labels):
        fields = {**fields, "label": task.labels[label]}
    if isinstance(index, dict):  # MultiRC
        numbers = [index[name] for name in ("paragraph", "question", "answer")]
        fields = {**fields, "idx": "-".join(map(str, numbers)), "passage": numbers[0]}
    return fields
