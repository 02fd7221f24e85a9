"""A task that is quick to train on."""

import json

import pytest
import yaml

from peft_smop.tasks import load_task


@pytest.fixture(scope="session")
def small_medley(tmp_path_factory):
    """A hundred rows of the generated task, as a task of one's own."""
    folder = tmp_path_factory.mktemp("small")
    task, split = load_task("medley")
    rows = [
        {"text": example.text, "label": task.labels[example.label]} for example in split.train[:100]
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    present = {row["label"] for row in rows}
    labels = {
        label: word
        for label, word in zip(task.labels, task.verbalizers, strict=True)
        if label in present
    }
    definition = {"name": "small", "template": "{text}", "labels": labels, "data": "rows.jsonl"}
    (folder / "small.yaml").write_text(yaml.safe_dump(definition))
    return folder / "small.yaml"
