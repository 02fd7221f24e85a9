"""An adapter's own task for lm-evaluation-harness.

DIR/smop_TASK.yaml    the task
DIR/test.jsonl        the rows of its test part: the text in its template, and the label's number
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from peft_smop.errors import ConfigError
from peft_smop.lab import load_trained, part_of_task
from peft_smop.predictor.finding import Source
from peft_smop.results import write_jsonl, write_whole

ROWS = "test.jsonl"


def export_task(
    source: Source,
    directory: Path,
    *,
    place: Path,
    model: str | None = None,
    task: str | Path | None = None,
) -> dict[str, Any]:
    """Write an adapter's task as the harness reads it.

    Args:
        source: a run's directory, or an adapter's with its task named.
        directory: where to write.
        place: where the directory will be; the harness takes no path that is relative to the YAML.
        model: the backbone; by default the one that it was trained on.
        task: for an adapter that was saved without its task.

    Returns:
        What the YAML says.

    Raises:
        ConfigError: the backbone is an encoder.
        SMoPError: the data cannot be read, or are not those of the run.
    """
    trained = load_trained(
        Path(source), task=None if task is None else str(task), model=model, data=None
    )
    formulation = trained.formulation
    if formulation.task_type == "SEQ_CLS":
        raise ConfigError(
            f"{source} is on an encoder, whose head gives no probability of a text; score it with"
            " smop evaluate"
        )
    examples = part_of_task(trained, "test").examples
    write_jsonl(directory / ROWS, ({"text": one.text, "answer": one.label} for one in examples))
    said = {
        "task": f"smop_{trained.task.name}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(place.resolve() / ROWS)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}" + formulation.cue,
        "doc_to_target": "answer",
        "doc_to_choice": list(trained.task.verbalizers),
        "target_delimiter": " ",
        "metric_list": [{"metric": "acc"}],
        "metadata": {"version": 1.0},
    }
    text = yaml.safe_dump(said, sort_keys=False, allow_unicode=True)
    write_whole(directory / f"{said['task']}.yaml", text)
    return said
