"""One run trained by two processes has the losses of one process."""

import json
import os
import subprocess
import sys

import pytest

from peft_smop.errors import ConfigError
from peft_smop.lab import RunSpec, run
from peft_smop.results import RunDirectory
from peft_smop.training.batching import LengthSampler

CALM = {"optimizer": "adamw_torch", "learning_rate": 0.01}


def test_torchrun_with_two_processes_has_the_losses_and_the_result_of_one(small_medley, tmp_path):
    """Over two epochs, whose last steps have fewer rows than a batch."""
    spec = RunSpec.of(
        {
            "task": str(small_medley),
            "model": "embedded",
            "method": {"name": "single", "num_virtual_tokens": 2},
            "training": {"max_steps": 13, "eval_steps": 4, "batch_size": 8, **CALM},
        }
    )
    alone = run(spec, tmp_path / "alone")
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            "-m", "peft_smop.cli", "train", "-t", small_medley, "-m", "embedded", "--method",
            "single", "-l", "2", "--max-steps", "13", "--eval-steps", "4", "--batch-size", "8",
            "--optimizer", "adamw_torch", "--lr", "0.01", "-o", tmp_path / "two",
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("test accuracy") == 1
    both = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("alone", "two")
    ]
    assert [entry["step"] for entry in both[0]] == [entry["step"] for entry in both[1]]
    for one, other in zip(*both, strict=True):
        for key in ("loss", "eval_loss"):
            if key in one:
                assert other[key] == pytest.approx(one[key], rel=1e-6)
    result = RunDirectory(tmp_path / "two").read_result()
    assert result.test.value == alone.test.value
    assert result.training.steps == 13


def test_an_incomplete_batch_is_divided_evenly_and_every_row_is_there_once():
    lengths = [5, 9, 4, 7, 7, 3, 8, 6, 5, 4, 9]
    alone = list(LengthSampler(lengths, 4, 0))
    among = list(LengthSampler(lengths, 4, 0, processes=2))
    assert len(among) == len(LengthSampler(lengths, 4, 0, processes=2)) == 12
    assert among[:8] == alone[:8]
    first, second = among[8:10], among[10:]
    assert sorted(first + second) == sorted([*alone[8:], 11])
    assert 11 not in first


def test_a_batch_that_cannot_be_divided_is_refused(small_medley, tmp_path, monkeypatch):
    from peft_smop.training.fit import _rows_of_one_process

    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match="batch_size=8 cannot be divided among 3 processes"):
        _rows_of_one_process(8, 80)
    with pytest.raises(ConfigError, match="the last step of an epoch has 1 of 10 rows for 3"):
        _rows_of_one_process(9, 10)
    assert _rows_of_one_process(9, 12) == 3
