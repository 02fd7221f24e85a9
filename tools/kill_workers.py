"""One sweep worked on by several commands at once, some of which are killed: each run is done once.

    python tools/kill_workers.py --runs 40 --commands 4 --kills 2

Every command is `smop sweep` on the same file and the same store. Commands are killed (SIGKILL)
while they train; the others must finish every run, those of the dead among them. The journal, in
which every training is noted when it begins and when it ends, says how often each was done.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import yaml

from peft_smop.lab.sweep import load_sweep
from peft_smop.lab.working import Store

SECONDS = 1800


def sweep_file(folder: Path, runs: int) -> Path:
    """A sweep of so many small runs."""
    path = folder / "many.yaml"
    content = {
        "tasks": ["medley"],
        "models": ["embedded"],
        "methods": ["single:l=1", "smop:k=2:l=1"],
        "seeds": -(-runs // 2),
        "train_examples": 16,
        "training": {"max_steps": 4, "eval_steps": 2, "batch_size": 8},
    }
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def kill_one(commands: list[subprocess.Popen[bytes]], store: Store, draw: random.Random) -> str:
    """Kill one of the commands in the middle of a run; which run that was."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        begun: dict[int, str] = {}
        for line in store.events():
            if line["event"] == "started":
                begun[line["pid"]] = line["run"]
            else:
                begun.pop(line["pid"], None)
        busy = [c for c in commands if c.poll() is None and c.pid in begun]
        if busy:
            victim = draw.choice(busy)
            victim.kill()
            victim.wait()
            return begun[victim.pid]
        time.sleep(0.05)
    raise SystemExit("no command was seen in the middle of a run")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--commands", type=int, default=4)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw = random.Random(given.seed)
    with tempfile.TemporaryDirectory(prefix="kill-workers-") as place:
        path, store = sweep_file(Path(place), given.runs), Store(Path(place) / "store")
        line = [sys.executable, "-m", "peft_smop.cli", "sweep", str(path), "-o", str(store.path)]
        commands = [
            subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for _ in range(given.commands)
        ]
        lost = []
        for _ in range(given.kills):
            done = sum(e["event"] == "finished" for e in store.events())
            until = done + draw.randint(1, max(1, given.runs // (2 * given.kills)))
            while sum(e["event"] == "finished" for e in store.events()) < until:
                time.sleep(0.2)
            lost.append(kill_one(commands, store, draw))
        codes = [command.wait(timeout=SECONDS) for command in commands]
        jobs = load_sweep(str(path))
        counts = Counter((e["event"], e["run"]) for e in store.events())
        for job in jobs:
            store.run(job).read_result()  # every hash of it is checked
            if counts["finished", job.directory] != 1:
                raise SystemExit(f"{job.directory}: {counts['finished', job.directory]} x finished")
        started = sum(n for (event, _), n in counts.items() if event == "started")
        again = {run: counts["started", run] for run in lost}
        if sorted(codes)[-(given.commands - given.kills) :] != [0] * (given.commands - given.kills):
            raise SystemExit(f"the commands ended with {codes}")
        print(
            f"{len(jobs)} runs, {given.commands} commands, {given.kills} killed in the middle of"
            f" {', '.join(lost)}: {started} trainings begun, {len(jobs)} finished once each;"
            f" of the lost ones begun {again}"
        )


if __name__ == "__main__":
    main()
