"""Several threads use one model at once: what a call remembers is its own."""

import threading

import pytest
import torch
from peft import get_peft_model

from peft_smop import BottleneckConfig, SMoPConfig
from tiny import KINDS, adapted, batch, decided

THREADS, TIMES = 4, 25


def zoo(name):
    kind = KINDS[name]
    model = adapted(kind, adapter="one")
    model.add_adapter("two", SMoPConfig(task_type=kind.task_type, num_virtual_tokens=2))
    return decided(model, "two", seed=9)


def bottlenecks(name):
    kind = KINDS[name]
    model = get_peft_model(kind.model(), BottleneckConfig(task_type=kind.task_type), "one")
    model.add_adapter("two", BottleneckConfig(task_type=kind.task_type, bottleneck_size=3, seed=4))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, p in model.named_parameters():
            if "bottleneck_up" in key:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return model.eval()


def together(jobs):
    """Every thread does its job many times; how often an answer differed from the first one."""
    expected = [job() for job in jobs]
    wrong, start = [], threading.Barrier(len(jobs))

    def work(job, its):
        start.wait()
        for _ in range(TIMES):
            if not torch.equal(job(), its):
                wrong.append(1)

    threads = [
        threading.Thread(target=work, args=pair) for pair in zip(jobs, expected, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(wrong)


NAMES = (
    ["one", "two", "__base__", "one"],
    ["two", "two", "one", "__base__"],
    None,
    ["__base__"] * 4,
)


@pytest.mark.parametrize("make", [zoo, bottlenecks], ids=["smop", "bottlenecks"])
@pytest.mark.parametrize("name", ["t5", "llama", "bert"])
def test_forwards_of_mixed_batches_are_what_each_is_alone(name, make):
    model = make(name)

    def job(seed, names):
        made = batch(KINDS[name], seed=seed)
        more = {} if names is None else {"adapter_names": names}
        with torch.no_grad():
            return lambda: model(**made, **more).logits.detach()

    assert together([job(i, NAMES[i]) for i in range(THREADS)]) == 0


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_generations_forwards_and_forced_routes_are_what_each_is_alone(name):
    model = zoo(name)
    made = [batch(KINDS[name], seed=seed) for seed in range(THREADS)]
    for one in made[:2]:
        one.pop("labels", None)
    length = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}

    def forced():
        with torch.no_grad(), model.routed([3, 0, 1, 2]):
            return model(**made[3]).logits

    jobs = [
        lambda: model.generate(**made[0], **length, adapter_names=NAMES[0]),
        lambda: model.generate(**made[1], **length, adapter_names=NAMES[1], num_beams=2),
        lambda: model(**made[2]).logits.detach(),
        forced,
    ]
    assert together(jobs) == 0
