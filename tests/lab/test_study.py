"""Methods side by side: equal terms, a log of what was tried, nothing run twice."""

import json
import sys

import pytest

from peft_smop.errors import ConfigError, DivergedError, RunError
from peft_smop.lab import RunSpec, study, variant
from peft_smop.report import compare

QUICK = {"max_steps": 4, "eval_steps": 2, "batch_size": 8}


def common(toy_task, model):
    return {"task": str(toy_task), "model": model, "training": QUICK}


def test_every_method_gets_every_seed_and_finished_runs_are_not_run_again(
    toy_task, saved_models, tmp_path
):
    chosen = [variant("smop"), variant("lora-8")]
    setting = common(toy_task, saved_models["t5"])
    groups = study(setting, chosen, seeds=[0, 1], trials=1, output=tmp_path)
    assert list(groups) == ["smop", "lora-8"]
    specs = [[RunSpec.load(path / "spec.yaml") for path in paths] for paths in groups.values()]
    assert [[s.seed for s in each] for each in specs] == [[0, 1], [0, 1]]
    assert [each[0].training.learning_rate for each in specs] == ["1.5x", 3e-3]
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/result.json")}
    assert len(written) == 4
    again = study(setting, chosen, seeds=[0, 1, 2], trials=1, output=tmp_path)
    assert [paths[:2] for paths in again.values()] == list(groups.values())
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())
    # other options are other runs, beside the old ones
    other = {**setting, "training": {**QUICK, "batch_size": 4}}
    study(other, [variant("smop")], seeds=[0], trials=1, output=tmp_path)
    assert len(list(tmp_path.glob("runs/*/result.json"))) == 7


def test_the_rate_is_chosen_by_validation_on_the_first_seed_and_the_log_says_what_was_tried(
    toy_task, saved_models, tmp_path
):
    rows = (toy_task.parent / "rows.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "train.jsonl").write_text("".join(rows[:50]))
    (tmp_path / "test.jsonl").write_text("".join(rows[50:]))
    text = toy_task.read_text().replace("data: rows.jsonl", "train: train.jsonl\ntest: test.jsonl")
    (tmp_path / "toy.yaml").write_text(text)
    chosen = [variant("smop"), variant("full")]
    setting = common(tmp_path / "toy.yaml", saved_models["t5"])
    groups = study(setting, chosen, seeds=[0, 1], trials=3, output=tmp_path)
    log = json.loads((tmp_path / "search.json").read_text())
    assert [len(entry["trials"]) for entry in log["methods"]] == [3, 3]
    assert [entry["method"] for entry in log["methods"]] == ["smop", "full"]
    assert [t["learning_rate"] for t in log["methods"][0]["trials"]] == ["1.5x", "0.4x", "4x"]
    for entry, paths in zip(log["methods"], groups.values(), strict=True):
        best = max(entry["trials"], key=lambda trial: trial["validation"])
        assert entry["chosen"] == best["learning_rate"]
        assert "test" not in json.dumps(entry)
        for path in paths:
            assert RunSpec.load(path / "spec.yaml").training.learning_rate == entry["chosen"]
    assert len(list(tmp_path.glob("runs/*"))) == 2 * (3 + 1)


@pytest.mark.parametrize("place", ["linear-s0", "runs/smop-lr0.5-s0-1a2b3c4d"])
def test_runs_that_are_named_in_another_way_are_not_mixed_with(
    place, toy_task, saved_models, tmp_path
):
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / "spec.yaml").write_text("task: toy\n")
    before = sorted(tmp_path.rglob("*"))
    setting = common(toy_task, saved_models["t5"])
    with pytest.raises(RunError, match=f"holds runs that no sweep made.*{place}.*give --output"):
        study(setting, [variant("smop")], seeds=[0], trials=1, output=tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_every_method_gets_the_same_number_of_trials_or_none_runs(tmp_path):
    with pytest.raises(ConfigError, match="trials=2 exceeds the 1 learning rates that lora-8:lr"):
        study(
            {"task": "cb"},
            [variant("smop"), variant("lora-8:lr=0.1")],
            seeds=[0],
            trials=2,
            output=tmp_path,
        )
    with pytest.raises(ConfigError, match="method 'smop' is named twice"):
        study({"task": "cb"}, [variant("smop")] * 2, seeds=[0], trials=1, output=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_study_s_mistake_is_found_before_the_first_run(toy_task, saved_models, tmp_path):
    bad = {**common(toy_task, saved_models["t5"]), "trainings": {}}
    with pytest.raises(ConfigError, match="unknown key 'trainings'"):
        study(bad, [variant("smop")], seeds=[0], trials=1, output=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_comparison_holds_the_others_against_the_first(toy_task, saved_models, tmp_path):
    groups = study(
        common(toy_task, saved_models["t5"]),
        [variant("smop"), variant("single"), variant("smop-uniform")],
        seeds=[0, 1],
        trials=1,
        output=tmp_path,
    )
    first, single, uniform = compare(groups)
    assert first.difference is None
    assert first.deviation is not None
    assert len(first.load) == 4
    assert uniform.load == ()
    assert (first.trainable, single.trainable) == (4 * 5 * 32 + 32 * 4, 5 * 32)
    for row in (single, uniform):
        assert row.difference.points == pytest.approx(row.mean - first.mean)
        assert row.wins == sum(a > b for a, b in zip(row.scores, first.scores, strict=True))
        assert row.difference.words in ("better", "worse", "not significant")
    assert first.seconds_per_100_steps is None or first.seconds_per_100_steps > 0
    assert first.training_gflops_per_example > 0


def test_a_rate_for_all_methods_is_the_only_one_and_leaves_nothing_to_search(
    toy_task, saved_models, tmp_path
):
    setting = common(toy_task, saved_models["t5"])
    setting["training"] = {**QUICK, "learning_rate": 0.01}
    groups = study(setting, [variant("smop")], seeds=[0], trials=1, output=tmp_path)
    assert RunSpec.load(groups["smop"][0] / "spec.yaml").training.learning_rate == 0.01
    with pytest.raises(ConfigError, match="trials=2 exceeds the 1 learning rates that smop"):
        study(setting, [variant("smop")], seeds=[0], trials=2, output=tmp_path)


def test_a_contradiction_in_the_last_method_is_found_before_the_first_trains(
    toy_task, saved_models, tmp_path
):
    chosen = [variant("single"), variant("smop:top_k=9")]
    with pytest.raises(ConfigError, match="top_k=9 exceeds num_prompts=4"):
        study(common(toy_task, saved_models["t5"]), chosen, seeds=[0], trials=1, output=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_rate_that_diverges_is_logged_and_another_one_is_chosen(
    toy_task, saved_models, tmp_path, monkeypatch
):
    module = sys.modules["peft_smop.lab.working"]
    original = module.run

    def diverges(spec, *args, **kwargs):
        if spec.training.learning_rate == "1.5x":
            raise DivergedError("the loss became nan")
        return original(spec, *args, **kwargs)

    monkeypatch.setattr(module, "run", diverges)
    study(
        common(toy_task, saved_models["t5"]), [variant("smop")], seeds=[0], trials=2,
        output=tmp_path,
    )  # fmt: skip
    entry = json.loads((tmp_path / "search.json").read_text())["methods"][0]
    assert entry["trials"][0] == {
        "learning_rate": "1.5x",
        "validation": None,
        "diverged": "the loss became nan",
    }
    assert entry["chosen"] == "0.4x"

    def always(*args, **kwargs):
        raise DivergedError("the loss became nan")

    monkeypatch.setattr(module, "run", always)
    with pytest.raises(DivergedError, match="smop diverged at every learning rate"):
        study(
            common(toy_task, saved_models["t5"]), [variant("smop")], seeds=[0], trials=2,
            output=tmp_path,
        )  # fmt: skip


def test_a_search_on_one_seed_is_refused_where_seeds_have_tests_of_their_own(tmp_path):
    setting = {"task": "medley", "preset": "three-way", "model": "embedded", "training": QUICK}
    with pytest.raises(ConfigError, match="every seed has test examples of its own"):
        study(setting, [variant("smop")], seeds=[0, 1], trials=2, output=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_second_search_in_the_same_place_keeps_the_first_one_s_log(
    toy_task, saved_models, tmp_path
):
    setting = common(toy_task, saved_models["t5"])
    study(setting, [variant("smop"), variant("single")], seeds=[0], trials=1, output=tmp_path)
    study(setting, [variant("single")], seeds=[0], trials=1, output=tmp_path)
    study(setting, [variant("single")], seeds=[0], trials=2, output=tmp_path)
    entries = json.loads((tmp_path / "search.json").read_text())["methods"]
    assert [(e["method"], len(e["trials"])) for e in entries] == [
        ("smop", 1),
        ("single", 1),
        ("single", 2),
    ]


def test_methods_tested_on_different_examples_are_not_compared(toy_task, saved_models, tmp_path):
    setting = common(toy_task, saved_models["t5"])
    one = study(setting, [variant("smop")], seeds=[0], trials=1, output=tmp_path)
    two = study(setting, [variant("single")], seeds=[1], trials=1, output=tmp_path)
    with pytest.raises(RunError, match="were not tested on the same examples"):
        compare(one | two)
