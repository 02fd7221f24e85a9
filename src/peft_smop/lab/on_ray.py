"""The Ray engine: a sweep's runs as tasks of a Ray cluster, over one store.

Ray decides where a run goes and starts it again when its process or its machine dies; the store's
own locks see to it that it is done once, and its checkpoints that it goes on where it was.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from peft_smop.errors import ConfigError, RunError, SMoPError
from peft_smop.lab.local import LOOK_SECONDS, Standing, new_sitting, standing, unfinished
from peft_smop.lab.sweep import Job
from peft_smop.lab.working import (
    LOOK_AGAIN_SECONDS,
    MOST_DEATHS,
    Store,
    remember,
    take,
    units,
)
from peft_smop.quiet import quiet_libraries


def run_on_ray(
    jobs: Sequence[Job],
    store: Store,
    *,
    workers: int = 1,
    address: str | None = None,
    cpus_per_run: float = 1,
    gpus_per_run: float = 0,
    pack: int = 1,
    report_to: Sequence[str] = (),
    on_look: Callable[[Standing], None] | None = None,
) -> dict[str, SMoPError]:
    """Run what is not finished in the store, as tasks of a Ray cluster.

    Args:
        jobs: the sweep.
        store: its directory, which every machine of the cluster must see under the same path.
        workers: runs at a time, where Ray is started on this machine.
        address: of a cluster that is there, such as host:6379 or auto; None: this machine alone.
        cpus_per_run: cores that Ray keeps for each, and so the threads that it has.
        gpus_per_run: accelerators that Ray keeps for each; 0.25: four runs share one.
        pack: how many runs may share a pass, as for `units`.
        report_to: as for `run`.
        on_look: told every half second how far the sweep is.

    Returns:
        By their directories, why those failed that did; the rest are finished.

    Raises:
        ConfigError: Ray is not installed, or nothing of the cluster could ever hold a run.
        RunError: the cluster cannot be reached; or the store cannot be written to.
        CheckpointError: the store's records are damaged.
    """
    store = Store(store.path.resolve())  # seen from elsewhere
    remember(store, jobs)
    sitting = new_sitting()
    with _cluster(address, workers, cpus_per_run, gpus_per_run) as ray:
        _check_room(ray.cluster_resources(), cpus_per_run, gpus_per_run)
        task = ray.remote(_one).options(
            num_cpus=cpus_per_run,
            num_gpus=gpus_per_run,
            max_retries=MOST_DEATHS,
        )
        threads = max(1, math.floor(cpus_per_run))
        waiting = [
            task.remote(unit, store, sitting, tuple(report_to), threads)
            for unit in units(jobs, pack)
        ]
        try:
            while waiting:
                _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=LOOK_SECONDS)
                if on_look is not None:
                    on_look(standing(jobs, store, sitting=sitting, workers=workers))
        except BaseException:
            for one in waiting:
                ray.cancel(one, force=True)
            raise
    return unfinished(jobs, store, sitting)


def _one(
    unit: Sequence[Job], store: Store, sitting: str, report_to: tuple[str, ...], threads: int
) -> None:
    """A task of Ray's."""
    import torch

    quiet_libraries()
    torch.set_num_threads(threads)
    while not take(unit, store, sitting, report_to=report_to):
        time.sleep(LOOK_AGAIN_SECONDS)  # another engine works on it, and may be killed


@contextmanager
def _cluster(
    address: str | None, workers: int, cpus_per_run: float, gpus_per_run: float
) -> Iterator[Any]:
    """A connection to a cluster; Ray is started where there is none, and ended with us.

    Raises:
        ConfigError: Ray is not installed.
        RunError: the cluster cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise ConfigError("--engine ray needs Ray: pip install 'peft-smop[ray]'") from error
    if ray.is_initialized():  # whoever started it ends it
        yield ray
        return
    own: dict[str, Any] = {"address": address}
    if address is None:
        own = {
            "address": "local",
            "num_cpus": math.ceil(workers * cpus_per_run),
            "include_dashboard": False,
        }
        if gpus_per_run:
            own.pop("num_cpus")  # all that the machine has
    try:
        ray.init(**own, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).split("\n")[0][:200]
        raise RunError(
            f"no Ray cluster at {address}: {reason}; start one by ray start --head"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_room(resources: dict[str, float], cpus: float, gpus: float) -> None:
    """Refuse runs for which Ray would wait for ever.

    Raises:
        ConfigError: the whole cluster is too small for one run.
    """
    for name, wanted in (("CPU", cpus), ("GPU", gpus)):
        if wanted > resources.get(name, 0):
            raise ConfigError(
                f"one run asks for {wanted:g} {name}, and the whole Ray cluster has"
                f" {resources.get(name, 0):g}; lower --{name.lower()}s-per-run"
            )
