"""A disk that is full at any moment ends a run with one sentence, and nothing finished is lost."""

import resource
import signal
from contextlib import contextmanager

import pytest

from peft_smop.errors import RunError
from peft_smop.lab import RunSpec, run
from peft_smop.results import RunDirectory

SIZES = (150, 700, 2_000, 5_000, 9_000, 30_000, 42_000)


@contextmanager
def no_file_longer_than(size):
    """The system itself refuses to write on, as it does where a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def spec(small_medley, seed=0, **method):
    return RunSpec.of(
        {
            "task": str(small_medley),
            "model": "embedded",
            "method": {"name": "smop", "num_virtual_tokens": 20, **method},
            "seed": seed,
            "training": {"max_steps": 4, "eval_steps": 2, "batch_size": 8},
        }
    )


@pytest.fixture(scope="module")
def undisturbed(small_medley, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder / "run", run(spec(small_medley), folder / "run")


@pytest.mark.parametrize("size", SIZES)
def test_a_full_disk_is_one_sentence_and_what_is_there_is_gone_on_with(
    small_medley, undisturbed, tmp_path, size
):
    whole, expected = undisturbed
    with no_file_longer_than(size), pytest.raises(RunError, match="cannot be written: ") as told:
        run(spec(small_medley), tmp_path / "run")
    assert "\n" not in str(told.value)
    assert str(tmp_path / "run") in str(told.value)
    assert not (tmp_path / "run" / "result.json").exists()
    again = run(spec(small_medley), tmp_path / "run", resume=True)
    assert again.test == expected.test
    for name in ("metrics.jsonl", "predictions.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()


def test_a_finished_run_is_not_touched_by_one_that_finds_the_disk_full(
    small_medley, undisturbed, tmp_path
):
    whole, expected = undisturbed
    with no_file_longer_than(2_000), pytest.raises(RunError):
        run(spec(small_medley, seed=1), tmp_path / "other")
    assert RunDirectory(whole).read_result() == expected


@pytest.mark.parametrize("place", ["/proc/run", "/dev/null/run", "/dev/full", "x" * 300])
def test_a_place_that_cannot_be_written_to_is_one_sentence(smop, small_medley, place):
    code, _, err = smop("train", "-t", small_medley, "-m", "embedded", "-o", place)
    assert code == 2
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1
