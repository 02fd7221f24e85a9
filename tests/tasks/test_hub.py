import os
import subprocess
import sys

import pytest

from peft_smop.errors import ConfigError
from peft_smop.tasks import CATALOGUE
from peft_smop.tasks.examples import to_examples
from peft_smop.tasks.hub import read_hub
from peft_smop.tasks.superglue import SUPERGLUE

datasets = pytest.importorskip("datasets")


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A folder laid out as a repository of the hub, with class labels in Parquet."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "hub"

    def write(config, names, rows):
        head = ["---", "configs:", f"- config_name: {config}", "  data_files:"]
        for part in ("train", "validation"):
            table = datasets.Dataset.from_list(rows)
            table = table.cast_column("label", datasets.ClassLabel(names=names))
            path = folder / config / f"{part}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            table.to_parquet(path)
            head += [f"  - split: {part}", f"    path: {config}/{part}.parquet"]
        (folder / "README.md").write_text("\n".join([*head, "---", ""]))
        return str(folder)

    return write


def read(name, repository):
    entry = SUPERGLUE[name]
    rows = read_hub(entry.task, ("train", "validation"), repository)
    return {part: to_examples(rows[part], entry.task, entry.columns) for part in rows}


def test_class_numbers_become_labels(repository):
    rows = [
        {"premise": "p", "hypothesis": "h", "idx": i, "label": label}
        for i, label in enumerate((2, 0, 1))
    ]
    path = repository("cb", ["entailment", "contradiction", "neutral"], rows)
    examples = read("cb", path)
    assert [example.label for example in examples["validation"]] == [2, 0, 1]
    assert examples["train"][0].text == "cb hypothesis: h . premise: p"


def test_multirc_keeps_its_three_numbers_and_its_passage(repository):
    index = {"paragraph": 3, "question": 5, "answer": 8}
    row = {"paragraph": "p", "question": "q", "answer": "", "idx": index, "label": 1}
    (example,) = read("multirc", repository("multirc", ["False", "True"], [row]))["train"]
    assert (example.id, example.group, example.label) == ("3-5-8", "3", 1)
    assert example.text == "multirc question: q answer:  . paragraph: p"


def test_labels_in_another_order_are_refused(repository):
    row = {"premise": "p", "hypothesis": "h", "idx": 0, "label": 0}
    path = repository("rte", ["not_entailment", "entailment"], [row])
    with pytest.raises(ConfigError, match=r"has the labels \['not_entailment', 'entailment'\]"):
        read("rte", path)


def test_what_cannot_be_reached_is_answered_with_what_can(tmp_path):
    with pytest.raises(ConfigError) as caught:
        read_hub(CATALOGUE["rte"].task, ("train",), str(tmp_path / "no/such/folder"))
    assert str(caught.value).startswith("cannot read rte (train) from ")
    assert str(caught.value).endswith(
        "; give --data DIR with the official files, or use task medley, which needs no download"
    )


def test_offline_the_error_says_what_to_do_instead(tmp_path):
    code = (
        "from peft_smop.tasks import load_task\n"
        "from peft_smop.errors import ConfigError\n"
        "try:\n    load_task('rte')\nexcept ConfigError as error:\n    print(error)"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    ).stdout
    assert answer.startswith("cannot read rte (train) from aps/super_glue (")
    assert "give --data DIR with the official files, or use task medley" in answer


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError) as caught:
        read_hub(CATALOGUE["rte"].task, ("train",))
    assert "needs the library datasets; pip install 'peft-smop[data]', or give --data" in str(
        caught.value
    )
