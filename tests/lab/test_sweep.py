"""A sweep: what its specification means, and that each of its runs is done once, whoever dies."""

import json
import os
import signal
import sys
import time
from collections import Counter

import pytest

from peft_smop.errors import ConfigError
from peft_smop.lab.local import standing
from peft_smop.lab.sweep import jobs_of, load_sweep, preset_names, run_name
from peft_smop.lab.working import State, Store, work
from peft_smop.results import RunDirectory

QUICK = {"max_steps": 2, "eval_steps": 1, "batch_size": 8}


def names(jobs):
    return [job.name for job in jobs]


def test_lists_multiply_and_methods_take_what_is_theirs():
    jobs = jobs_of(
        {
            "tasks": ["cb", "rte"],
            "methods": ["smop", "single", "lora-8"],
            "k": [2, 4],
            "l": [1, 5],
            "seeds": 2,
        }
    )
    # smop: 2 k x 2 l; single: 2 l; lora: neither
    assert Counter(names(jobs)) == {
        "smop:k=2:l=1": 4,
        "smop:k=2:l=5": 4,
        "smop:k=4:l=1": 4,
        "smop:k=4:l=5": 4,
        "single:l=1": 4,
        "single:l=5": 4,
        "lora-8": 4,
    }
    assert len({job.directory for job in jobs}) == 28
    assert [job.spec.seed for job in jobs] == [0] * 14 + [1] * 14  # something of all comes first


def test_a_single_run_is_a_sweep_of_one():
    (job,) = jobs_of({"task": "cb", "seed": 3, "learning_rate": 0.1, "training": QUICK})
    assert (job.spec.seed, job.spec.learning_rate, job.spec.training.max_steps) == (3, 0.1, 2)


def test_rates_are_searched_over_each_kind_s_own():
    jobs = jobs_of({"task": "cb", "methods": ["smop", "lora-8", "smop:lr=0.2"], "lr": "search"})
    found = {}
    for job in jobs:
        found.setdefault(job.name, []).append(job.spec.learning_rate)
    assert found == {
        "smop": ["1.5x", "0.4x", "4x"],
        "lora-8": [3e-3, 1e-3, 3e-4],
        "smop:lr=0.2": [0.2],
    }


def test_training_options_may_be_lists_and_a_task_may_have_its_own():
    jobs = jobs_of(
        {
            "tasks": ["cb", {"task": "boolq", "training": {"epochs": 20}}],
            "training": {"batch_size": [8, 16], "epochs": 100},
        }
    )
    said = {(j.spec.task, j.spec.training.epochs, j.spec.training.batch_size) for j in jobs}
    assert said == {("cb", 100, 8), ("cb", 100, 16), ("boolq", 20, 8), ("boolq", 20, 16)}


def test_a_file_s_paths_are_its_own_and_the_command_line_changes_the_rest(
    toy_task, tmp_path, monkeypatch
):
    path = toy_task.parent / "sweep.yaml"
    path.write_text("tasks: [toy.yaml]\nseeds: 2\ntraining: {epochs: 3}\nsmall: {seeds: 1}\n")
    monkeypatch.chdir(tmp_path)
    jobs = load_sweep(str(path), {"training": {"batch_size": 4}})
    assert {job.spec.task for job in jobs} == {str(toy_task)}
    assert [(j.spec.seed, j.spec.training.epochs, j.spec.training.batch_size) for j in jobs] == [
        (0, 3, 4),
        (1, 3, 4),
    ]
    assert len(load_sweep(str(path), small=True)) == 1


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_of_the_paper_is_a_sweep_and_has_a_small_form(preset):
    whole = load_sweep(preset)
    small = load_sweep(preset, small=True)
    assert {job.spec.model for job in small} == {"embedded"}
    assert {job.spec.task for job in small} == {"medley"}
    assert set(names(small)) == set(names(whole))
    assert all((job.spec.training.max_steps or 99) <= 24 for job in small)


def test_the_presets_have_the_paper_s_grids():
    assert len(set(names(load_sweep("paper/table2")))) == 16
    assert len(load_sweep("paper/table2")) == 16 * 6 * 3 * 3
    assert {job.spec.model for job in load_sweep("paper/table1")} == {"t5-base", "t5-large"}
    assert set(names(load_sweep("paper/table3"))) >= {"smop-top2", "smop-gumbel", "single"}


MALFORMED = [
    ({"tsaks": ["cb"]}, "unknown key 'tsaks'; did you mean tasks"),
    ({}, "no key 'task'"),
    ({"tasks": []}, "task is an empty list"),
    ({"tasks": 3}, "task 3; expected a name of smop tasks"),
    ({"tasks": [{"name": "cb"}]}, "expected a name of smop tasks, a YAML's path, or a mapping"),
    ({"tasks": [{"task": "cb", "epochs": 3}]}, "unknown key 'epochs'"),
    ({"tasks": [{"task": "cb", "training": 3}]}, "training=3 of task 'cb'"),
    ({"task": "cb", "tasks": ["cb"]}, "task is said twice"),
    ({"task": "cb", "methods": ["smopp"]}, "unknown method 'smopp'; did you mean smop"),
    ({"task": "cb", "methods": [3]}, "method 3; expected a name of smop methods"),
    ({"task": "cb", "methods": [{"k": 3}]}, "a mapping with the key name"),
    ({"task": "cb", "methods": [{"name": "smop", "num_prompt": 3}]}, "did you mean num_prompts"),
    ({"task": "cb", "methods": []}, "method is an empty list"),
    ({"task": "cb", "methods": ["smop:k"]}, "'k' should be KEY=VALUE"),
    ({"task": "cb", "methods": ["lora-8"], "k": [2]}, "num_prompts is no option of lora-8"),
    ({"task": "cb", "k": ["two"]}, "num_prompts='two' must be a"),
    ({"task": "cb", "k": [0]}, "num_prompts=0"),
    ({"task": "cb", "methods": ["smop:top_k=9"]}, "top_k=9 exceeds num_prompts=4"),
    ({"task": "cb", "seeds": "many"}, "seed 'many'; expected a whole number"),
    ({"task": "cb", "seeds": [0.5]}, "seed 0.5; expected a whole number"),
    ({"task": "cb", "seeds": []}, "seeds is an empty list"),
    ({"task": "cb", "seeds": True}, "seed True"),
    ({"task": "cb", "lr": ["fast"]}, "learning_rate='fast' must be a"),
    ({"task": "cb", "lr": [-1]}, "learning_rate=-1 must be a"),
    ({"task": "cb", "training": 7}, "training=7; expected options of training"),
    ({"task": "cb", "training": {"epochs": "x"}}, "epochs='x' must be a"),
    ({"task": "cb", "training": {"epoch": 3}}, "unknown key 'epoch'; did you mean epochs"),
    ({"task": "cb", "epochs": 3}, "epochs belongs under training"),
    ({"task": "cb", "rank": 3}, "rank belongs to a method"),
    (
        {"task": "cb", "lr": [0.1], "training": {"learning_rate": 0.2}},
        "learning_rate is said twice",
    ),
    ({"task": "cb", "seeds": 200_000}, "more than 100,000 runs"),
]


@pytest.mark.parametrize(("content", "words"), MALFORMED)
def test_a_malformed_sweep_is_one_helpful_sentence(content, words):
    with pytest.raises(ConfigError) as told:
        jobs_of(content, place="sweep.yaml")
    assert words in str(told.value)
    assert str(told.value).startswith("sweep.yaml: ") or "exceeds" in words or "=0" in words
    assert len(str(told.value)) < 500


def test_names_are_those_of_their_content():
    one, other = jobs_of({"task": "cb", "training": {"batch_size": [8, 16]}})
    assert one.directory != other.directory
    assert one.directory == run_name(one.spec, one.name)
    assert one.directory.startswith("cb-t5-base-smop-lr1.5x-s0-")


def small_jobs(small_medley, count, **training):
    return jobs_of(
        {
            "task": str(small_medley),
            "model": "embedded",
            "method": "single:l=1",
            "seeds": count,
            "training": {**QUICK, **training},
        }
    )


def in_a_process(jobs, store):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work(jobs, store, "test")
            code = 0
        finally:
            os._exit(code)
    return child


def test_every_run_is_done_exactly_once_by_processes_of_which_some_are_killed(
    small_medley, tmp_path
):
    jobs, store = small_jobs(small_medley, 6), Store(tmp_path)
    crew = [in_a_process(jobs, store) for _ in range(3)]
    begun = {}
    while len(begun) < 3:  # each has a run of its own
        begun = {line["pid"]: line["run"] for line in store.events("test")}
        time.sleep(0.02)
    victim = crew[0]
    os.kill(victim, signal.SIGKILL)
    os.waitpid(victim, 0)
    for child in crew[1:]:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    events = store.events("test")
    finished = Counter(e["run"] for e in events if e["event"] == "finished")
    assert finished == dict.fromkeys((job.directory for job in jobs), 1)
    started = Counter(e["run"] for e in events if e["event"] == "started")
    assert sum(started.values()) in (6, 7)
    assert all(count == 1 for run, count in started.items() if run != begun[victim])
    for job in jobs:
        assert store.run(job).read_result().seed == job.spec.seed
    # and nothing is begun again
    work(jobs, store, "again")
    assert store.events("again") == []


def test_a_run_that_fails_says_why_and_the_others_go_on(small_medley, tmp_path):
    good = small_jobs(small_medley, 1)
    bad = jobs_of({"task": "cb", "data": tmp_path / "no", "model": "embedded", "training": QUICK})
    store = Store(tmp_path)
    work([*bad, *good], store, "one")
    assert store.run(good[0]).is_finished
    assert str(tmp_path / "no") in str(store.failures("one")[bad[0].directory])
    now = standing([*bad, *good], store, sitting="one")
    assert [now.states[job.directory] for job in (*bad, *good)] == [State.failed, State.finished]
    assert now.seconds_left == 0
    # another call tries again
    work(bad, store, "two")
    assert [e["event"] for e in store.events("two")] == ["started", "failed"]


def test_a_defect_in_one_run_is_kept_for_whoever_mends_it_and_the_others_go_on(
    small_medley, tmp_path, monkeypatch
):
    jobs, store = small_jobs(small_medley, 2), Store(tmp_path)
    module = sys.modules["peft_smop.lab.working"]
    original = module.run

    def breaks(spec, *args, **kwargs):
        return 1 / 0 if spec.seed == 0 else original(spec, *args, **kwargs)

    monkeypatch.setattr(module, "run", breaks)
    work(jobs, store, "one")
    assert str(store.failures("one")[jobs[0].directory]) == "ZeroDivisionError: division by zero"
    assert "breaks" in next(e for e in store.events("one") if e["event"] == "failed")["traceback"]
    assert store.run(jobs[1]).is_finished


def test_a_run_that_takes_its_process_with_it_is_left_alone_in_the_end(small_medley, tmp_path):
    (job,) = small_jobs(small_medley, 1)
    store = Store(tmp_path)
    for _ in range(3):  # three processes died in it
        store.note("started", job, "one", resumed=False)
    work([job], store, "one")
    assert "ended its process 3 times" in str(store.failures("one")[job.directory])
    assert not store.run(job).is_finished


def test_a_journal_s_torn_lines_hide_no_others(small_medley, tmp_path):
    (job,) = small_jobs(small_medley, 1)
    store = Store(tmp_path)
    store.journal.write_text("{\n")
    store.note("failed", job, "one", reason="no memory")
    assert str(store.failures("one")[job.directory]) == "no memory"
    assert store.failures("another") == {}
    assert not store.run(job).is_finished


def test_the_command_runs_what_is_missing_and_says_what_comes_next(smop, small_medley, tmp_path):
    arguments = (
        "sweep", "-t", small_medley, "-m", "embedded", "--methods", "single", "--l", "1,2",
        "--max-steps", 2, "--eval-steps", 1, "--set", "batch_size=8", "-o", tmp_path / "s",
    )  # fmt: skip
    code, out, err = smop(*arguments, "--dry-run")
    assert code == 0
    assert "2 runs, 0 done" in err
    assert "0 of 1" in out
    assert not (tmp_path / "s").exists()
    code, out, err = smop(*arguments)
    assert code == 0, err
    assert "2 of 2 runs are finished" in out
    assert f"next: smop report {tmp_path / 's'}" in out
    assert len(json.loads((tmp_path / "s" / "sweep.json").read_text())["runs"]) == 2
    before = (tmp_path / "s" / "journal.jsonl").read_text()
    assert "2 of 2" in smop(*arguments)[1]
    assert (tmp_path / "s" / "journal.jsonl").read_text() == before
    assert all(RunDirectory(p.parent).is_finished for p in tmp_path.rglob("spec.yaml"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("paper/tabel2",), "did you mean paper/table2"),
        (("nowhere.yaml",), "does not exist"),
        (("--small",), "name one, such as paper/table2"),
        (("-t", "medly"), "did you mean medley"),
        (("-t", "medley", "--methods", "smopp"), "did you mean smop"),
        (("-t", "medley", "--report-to", "tensorbord"), "did you mean tensorboard"),
        (("-t", "medley", "--max-steps", 3, "--set", "max_steps=4"), "contradicts --max-steps"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(smop, arguments, words):
    code, _, err = smop("sweep", *arguments)
    assert code == 2
    assert words in err
    assert "Traceback" not in err
