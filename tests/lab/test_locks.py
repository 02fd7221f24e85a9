"""Two processes never do one run; a lock dies with its owner, and what it left is tidied up."""

import os
import signal
import subprocess
import sys

import pytest

from peft_smop.errors import RunError, RunInUseError
from peft_smop.lab import RunSpec, run
from peft_smop.results import RunDirectory, locked

HOLDS = (
    "import sys, time; from pathlib import Path; from peft_smop.results import locked\n"
    "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
)


@pytest.fixture
def other_process(tmp_path):
    """Another process that holds a directory until it is killed."""
    started = []

    def hold(path):
        process = subprocess.Popen([sys.executable, "-c", HOLDS, path], stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"held\n"
        started.append(process)
        return process

    yield hold
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def spec(small_medley, **more):
    return RunSpec.of(
        {
            "task": str(small_medley),
            "model": "embedded",
            "training": {"max_steps": 2, "eval_steps": 1, "batch_size": 8},
            **more,
        }
    )


def test_a_run_that_another_process_works_on_is_refused_until_that_is_killed(
    small_medley, tmp_path, other_process
):
    process = other_process(tmp_path / "run")
    for how in ({}, {"resume": True}):
        with pytest.raises(RunInUseError, match=f"worked on by process {process.pid} on .* since"):
            run(spec(small_medley), tmp_path / "run", **how)
    assert not (tmp_path / "run" / "spec.yaml").exists()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (tmp_path / "run" / ".lock").exists()
    assert run(spec(small_medley), tmp_path / "run").training.steps == 2
    assert not (tmp_path / "run" / ".lock").exists()


def test_a_lock_is_held_against_its_own_process_too(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    with locked(a), locked(b), pytest.raises(RunInUseError), locked(a):
        pass
    with locked(tmp_path / "a"):
        pass


def test_a_directory_in_which_nothing_was_left_is_taken_away_again(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "x" / "y"):
        raise ZeroDivisionError
    assert not (tmp_path / "x").exists()
    (tmp_path / "mine").mkdir()
    with locked(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").is_dir()
    with locked(tmp_path / "x" / "y"):
        (tmp_path / "x" / "y" / "kept").write_text("")
    assert (tmp_path / "x" / "y" / "kept").exists()


@pytest.mark.parametrize("left", [[".lock"], [".spec.yaml.0123abcd.draft"], [".lock", ".x.draft"]])
def test_what_a_run_leaves_that_is_killed_in_its_very_first_write_is_no_obstacle(
    small_medley, tmp_path, left
):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in left:
        (folder / name).write_text('{"pid"')
    assert run(spec(small_medley), folder).training.steps == 2
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_drafts_are_tidied_up_and_other_files_are_not(tmp_path):
    (tmp_path / ".result.json.9.draft").write_text("{")
    (tmp_path / "notes.draft").write_text("mine")
    with RunDirectory(tmp_path).locked():
        assert [path.name for path in sorted(tmp_path.iterdir())] == [".lock", "notes.draft"]
    with pytest.raises(RunError, match="holds no run"):
        RunDirectory(tmp_path).check(resume=False, overwrite=False)


def test_why_a_run_stopped_is_written_down_until_it_is_gone_on_with(
    small_medley, tmp_path, monkeypatch
):
    import sys as modules

    ending = modules.modules["peft_smop.lab.ending"]
    with monkeypatch.context() as patched:

        def no_memory(*args, **kwargs):
            raise MemoryError

        patched.setattr(ending, "score_once", no_memory)
        with pytest.raises(RunError, match="ran out of memory: no memory is left"):
            run(spec(small_medley), tmp_path / "run")
    assert "ran out of memory" in (tmp_path / "run" / "failure.json").read_text()
    run(spec(small_medley), tmp_path / "run", resume=True)
    assert not (tmp_path / "run" / "failure.json").exists()
