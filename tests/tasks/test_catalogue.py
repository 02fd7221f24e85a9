import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from peft_smop.errors import ConfigError
from peft_smop.tasks import CATALOGUE, PRESETS, load_task, task_names


def test_the_tasks_have_the_names_of_the_command_line():
    assert task_names() == ("medley", "medley-one", "boolq", "cb", "copa", "multirc", "rte", "wic")


def test_every_task_says_what_it_is_and_where_it_comes_from():
    for name, entry in CATALOGUE.items():
        assert entry.task.name == name
        assert entry.task.description
        assert entry.source
        assert set(entry.presets) <= set(PRESETS)


def test_an_unknown_task_is_answered_with_the_nearest_and_the_way_out():
    with pytest.raises(ConfigError) as caught:
        load_task("coppa")
    assert str(caught.value) == (
        "unknown task 'coppa'; did you mean copa? or give the path of your own task's YAML"
    )


def test_medley_has_its_three_sizes_twelve_labels_and_known_populations():
    task, split = load_task("medley")
    assert len(task.labels) == 12
    assert {"valid", "wrong", "good", "same"} < set(task.verbalizers)
    assert [len(part) for part in (split.train, split.validation, split.test)] == [512, 256, 1000]
    assert split.preset == CATALOGUE["medley"].presets[0]
    counts = Counter(example.label for example in split.train)
    assert set(counts) == set(range(12))
    assert max(counts.values()) <= 58  # a ninth of 512, rounded up to whole blocks
    assert len({example.population for example in split.train}) == 9
    parts = split.record()["parts"]
    assert parts["test"]["texts_shared_with_train"] == 0
    assert parts["validation"]["texts_shared_with_train"] == 0


def test_the_seed_gives_medley_other_training_rows_and_the_same_test():
    first, again, second = (load_task("medley", seed=seed).split for seed in (1, 1, 2))
    assert first.train == again.train
    assert first.train != second.train
    assert first.validation != second.validation
    assert first.test == second.test
    assert second.record()["parts"]["test"]["texts_shared_with_train"] == 0


def test_medley_can_be_divided_again():
    split = load_task("medley", preset="three-way").split
    assert [len(part) for part in (split.train, split.validation, split.test)] == [1414, 177, 177]


def test_medley_needs_no_folder(tmp_path):
    with pytest.raises(ConfigError, match="but medley is generated; leave it out"):
        load_task("medley", data=tmp_path)


def test_importing_the_tasks_loads_nothing_heavy():
    code = (
        "import sys, peft_smop\n"
        "before = set(sys.modules)\n"
        "import peft_smop.tasks\n"
        "heavy = {'torch', 'transformers', 'sklearn', 'pyarrow', 'datasets'}\n"
        "print(sorted(heavy & (set(sys.modules) - before)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_negative_control_has_one_population_and_its_two_labels():
    task, split = load_task("medley-one")
    parts = (split.train, split.validation, split.test)
    assert [len(part) for part in parts] == [512, 256, 1000]
    assert {example.population for part in parts for example in part} == {"people-comparison"}
    assert len(task.labels) == 2
    assert set(task.labels) < set(load_task("medley").task.labels)
    texts = [{example.text for example in part} for part in parts]
    assert not texts[0] & texts[1]
    assert not texts[0] & texts[2]
    assert not texts[1] & texts[2]
    assert {example.label for example in split.train} == {0, 1}
    with pytest.raises(ConfigError, match="but medley-one is generated"):
        load_task("medley-one", data=Path("somewhere"))
