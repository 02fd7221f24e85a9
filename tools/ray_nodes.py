"""A sweep on a Ray cluster of two nodes, of which a worker and then a whole node are killed.

    python tools/ray_nodes.py --runs 8

The nodes are Ray's own processes on this machine. One process that trains is killed, then the node
that trains beside the head. Every run must finish, once, with the adapter, the predictions and the
metrics of the same sweep done by the local engine.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"

import ray
from ray.cluster_utils import Cluster

from peft_smop.lab.local import run_locally
from peft_smop.lab.on_ray import run_on_ray
from peft_smop.lab.sweep import Job, jobs_of
from peft_smop.lab.working import Store

SAME = ("adapter/adapter_model.safetensors", "predictions.jsonl", "metrics.jsonl", "split.json")
SECONDS = 300


def sweep(runs: int, steps: int) -> list[Job]:
    """So many small runs, of three methods."""
    jobs = jobs_of(
        {
            "task": "medley",
            "model": "embedded",
            "methods": ["single:l=1", "smop:k=2:l=1", "lora-2"],
            "seeds": -(-runs // 3),
            "train_examples": 32,
            "training": {"max_steps": steps, "eval_steps": 2, "batch_size": 8},
        }
    )
    return jobs[:runs]


def digests(job: Job, store: Store) -> list[str]:
    """The bytes of a run that must not depend on who did it; its result is checked on the way."""
    directory = store.run(job)
    directory.read_result()
    return [hashlib.sha256((directory.path / name).read_bytes()).hexdigest() for name in SAME]


def running(store: Store) -> dict[str, int]:
    """The runs that were begun and have not ended, and the processes that began them last."""
    found: dict[str, int] = {}
    for line in store.events():
        if line["event"] == "started":
            found[line["run"]] = line["pid"]
        else:
            found.pop(line["run"], None)
    return found


def when(condition: Callable[[], bool], what: str) -> None:
    """Wait until something is so."""
    end = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"{what} did not happen in {SECONDS} s")
        time.sleep(0.05)


def node_of(pid: int, nodes: dict[int, Any]) -> Any:
    """The node, by the process of its raylet, that started a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    parent = int(status.split("PPid:")[1].split()[0])
    return nodes.get(parent)


def killing(store: Store, cluster: Cluster, second: Any, told: list[str]) -> None:
    """Kill one process that trains, and then, when it trains again, the second node."""
    raylet = second.all_processes["raylet"][0].process.pid
    when(lambda: bool(running(store)), "a run")
    victim, pid = next(iter(running(store).items()))
    os.kill(pid, signal.SIGKILL)
    told.append(f"killed the process of {victim}")
    when(
        lambda: any(
            p != pid and Path(f"/proc/{p}").exists() and node_of(p, {raylet: second})
            for p in running(store).values()
        ),
        "a run on the second node",
    )
    lost = [r for r, p in running(store).items() if p != pid and Path(f"/proc/{p}").exists()]
    cluster.remove_node(second, allow_graceful=False)
    told.append(f"killed a node; begun and not ended: {', '.join(lost)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6)
    given = parser.parse_args()
    jobs = sweep(given.runs, given.steps)
    with tempfile.TemporaryDirectory(prefix="ray-nodes-") as folder:
        local, store = Store(Path(folder) / "local"), Store(Path(folder) / "ray")
        if failed := run_locally(jobs, local):
            raise SystemExit(f"failed: {failed}")
        quiet = {"include_dashboard": False, "object_store_memory": 80 * 2**20}
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **quiet})
        told: list[str] = []
        try:
            second = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
            killer = threading.Thread(target=killing, args=(store, cluster, second, told))
            killer.daemon = True
            killer.start()
            failed = run_on_ray(jobs, store, address=cluster.address)
            killer.join(timeout=5)
        finally:
            ray.shutdown()
            cluster.shutdown()
        print("\n".join(told))
        if failed or len(told) < 2:
            raise SystemExit(f"failed: {failed}; killed: {told}")
        counted = Counter((line["event"], line["run"]) for line in store.events())
        for job in jobs:
            if digests(job, store) != digests(job, local):
                raise SystemExit(f"{job.directory} is not what the local engine makes of it")
            if counted["finished", job.directory] != 1:
                raise SystemExit(f"{job.directory} finished {counted['finished', job.directory]} x")
        started = sum(n for (event, _), n in counted.items() if event == "started")
    print(f"{len(jobs)} runs: {started} begun, {len(jobs)} finished once each, all equal to local")


if __name__ == "__main__":
    main()
