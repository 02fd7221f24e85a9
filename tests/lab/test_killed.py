"""The script that kills trainings at random moments, in short."""

import os
import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).parents[2] / "tools" / "kill_runs.py"


def test_runs_killed_at_random_moments_end_as_if_they_never_were():
    command = [sys.executable, TOOL, "--kills", "2", "--steps", "6", "--seed", "2"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert "weights, predictions and metrics are equal" in done.stdout
    assert done.stdout.count("kill ") == 2
