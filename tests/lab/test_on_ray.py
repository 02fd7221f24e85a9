"""The Ray engine: a killed process's run is done by another, and all ends as it does locally."""

import hashlib
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from peft_smop.errors import ConfigError
from peft_smop.lab.local import run_locally
from peft_smop.lab.sweep import jobs_of
from peft_smop.lab.working import Store

pytest.importorskip("ray", reason="needs pip install 'peft-smop[ray]'")
SAME = ("adapter/adapter_model.safetensors", "predictions.jsonl", "metrics.jsonl")
# Ray's own sockets and files are closed by its processes, after ours have ended
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning")


@pytest.fixture
def on_a_core(monkeypatch, tmp_path_factory):
    """Ray on this machine with one core, quiet, and gone afterwards."""
    import ray

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "src"))
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        object_store_memory=80 * 2**20,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


def digests(job, store):
    directory = store.run(job)
    directory.read_result()
    return [hashlib.sha256((directory.path / name).read_bytes()).hexdigest() for name in SAME]


def test_a_killed_process_s_run_is_done_by_another_with_the_local_engine_s_bytes(
    on_a_core, small_medley, tmp_path
):
    from peft_smop.lab.on_ray import run_on_ray

    jobs = jobs_of(
        {
            "task": str(small_medley),
            "model": "embedded",
            "method": "single:l=1",
            "seeds": 2,
            "training": {"max_steps": 4, "eval_steps": 2, "batch_size": 8},
        }
    )
    local, store = Store(tmp_path / "local"), Store(tmp_path / "ray")
    assert run_locally(jobs, local) == {}
    killed = []

    def kill():
        while not killed:
            for line in store.events():
                os.kill(line["pid"], signal.SIGKILL)
                killed.append(line["run"])
                break
            time.sleep(0.02)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    assert run_on_ray(jobs, store) == {}
    killer.join(timeout=10)
    counted = Counter((line["event"], line["run"]) for line in store.events())
    assert [counted["finished", job.directory] for job in jobs] == [1, 1]
    assert sum(n for (event, _), n in counted.items() if event == "started") == 3
    assert counted["started", killed[0]] == 2
    assert [digests(job, store) for job in jobs] == [digests(job, local) for job in jobs]
    with pytest.raises(
        ConfigError, match="one run asks for 3 CPU, and the whole Ray cluster has 1"
    ):
        run_on_ray(jobs, store, cpus_per_run=3)


def test_ray_s_options_are_refused_for_the_local_engine(smop):
    code, _, err = smop("sweep", "-t", "medley", "--address", "auto")
    assert code == 2
    assert "--address, --cpus-per-run and --gpus-per-run are for --engine ray" in err
