"""Kill trainings at random moments, go on with them, and compare the end with one never disturbed.

    python tools/kill_runs.py --kills 60

Every run is a process of its own that is killed (SIGKILL) after a random part of the time that it
takes, and started again until it finishes; then its weights, predictions and metrics must be those
of the undisturbed run, byte by byte, and nothing that had finished may have changed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from peft_smop.lab import RunSpec, run, variant
from peft_smop.results import RunDirectory

SAME = ("adapter/adapter_model.safetensors", "predictions.jsonl", "metrics.jsonl", "split.json")
METHODS = ("smop", "smop-posterior", "lora-2", "p-tuning-5", "smop-revival")


def spec(number: int, steps: int) -> RunSpec:
    one = variant(METHODS[number % len(METHODS)])
    quick = {"max_steps": steps, "eval_steps": 3, "batch_size": 8}
    return RunSpec.of(
        {
            "task": "medley",
            "train_examples": 64,
            "model": "embedded",
            "method": one.method,
            "training": {**quick, **one.training},
            "seed": number,
        }
    )


def digest(directory: Path) -> dict[str, str]:
    """The bytes that must not depend on what happened on the way."""
    return {name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in SAME}


def in_a_process(work: Callable[[], object], kill_after: float | None) -> bool:
    """Whether the work came to its end; it is killed after so many seconds."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:
            print(f"a run ended with {type(error).__name__}: {error}", file=sys.stderr)
        finally:
            os._exit(code)
    begun = time.monotonic()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if os.waitstatus_to_exitcode(status):
                raise SystemExit("a run failed that nobody killed")
            return True
        if kill_after is not None and time.monotonic() - begun >= kill_after:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False
        time.sleep(0.002)


def disturbed(kills: int, steps: int, folder: Path, draw: random.Random) -> int:
    """Kill so many times; how many runs were finished on the way."""
    done, number = 0, 0
    finished: dict[Path, dict[str, str]] = {}
    while done < kills:
        wanted = spec(number, steps)
        quiet, killed = folder / f"quiet{number}", folder / f"killed{number}"
        began = time.monotonic()
        in_a_process(lambda w=wanted, q=quiet: run(w, q), None)
        seconds = time.monotonic() - began
        while True:
            again = killed.is_dir()
            moment = draw.uniform(0, 1.05 * seconds) if done < kills else None
            if in_a_process(lambda w=wanted, k=killed, a=again: run(w, k, resume=a), moment):
                break
            done += 1
            print(
                f"kill {done}: {wanted.method.name} seed {number} after {moment:.2f} s", flush=True
            )
        finished[killed] = digest(killed)
        if finished[killed] != digest(quiet):
            raise SystemExit(f"{killed} is not what {quiet} is")
        number += 1
    for path, before in finished.items():
        RunDirectory(path).read_result()
        if digest(path) != before:
            raise SystemExit(f"{path} was finished, and has changed")
    return len(finished)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="killed-"))
    try:
        runs = disturbed(given.kills, given.steps, folder, random.Random(given.seed))
    finally:
        shutil.rmtree(folder)
    print(f"{given.kills} kills over {runs} runs: weights, predictions and metrics are equal")


if __name__ == "__main__":
    main()
