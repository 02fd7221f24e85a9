"""Compares compiled with eager models and prints, as JSON, what became of every case.

A program of its own: in the tests' process shapes are checked at every call, and a graph cannot go
through those checks.
"""

import json
import sys

import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.testing import assert_close

from peft_smop import SMoPConfig
from tiny import KINDS, THREE, adapted, batch, decided, without_dropout

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
MIXED = ["default", "short", "__base__", "default"]


def model_of(kind):
    model = without_dropout(adapted(kind))
    model.add_adapter("short", SMoPConfig(task_type=kind.task_type, num_virtual_tokens=2))
    return decided(model, "short", seed=8)


def compiled(model):
    torch._dynamo.reset()
    return torch.compile(model, fullgraph=True, backend="aot_eager")


def loss_of(output):
    return (output.logits * torch.linspace(-1, 1, output.logits.shape[-1])).sum()


def equals_eager(name, *, training, mixed):
    """Two batches and two counts of steps, with which the noise moves on; one graph."""
    kind = KINDS[name]
    more = {"adapter_names": MIXED} if mixed else {}
    eager, model = (model_of(kind).train(training) for _ in range(2))
    run = compiled(model)
    for seed, stance in ((1, "default"), (2, "fail_on_recompile")):
        made = {**batch(kind, seed=seed), **more}
        if name == "llama" and training:
            made["labels"] = made["input_ids"].index_fill(1, torch.arange(4), -100)
        for each in (eager, model):
            each.smop_layer["default"].steps.fill_(seed)
        with torch.set_grad_enabled(training):
            expected = eager(**made)
            with torch.compiler.set_stance(stance):
                found = run(**made)
        assert_close(found.logits, expected.logits, **CLOSE)
        if training:
            for output, its in ((expected, eager), (found, model)):
                its.zero_grad()
                loss_of(output).backward()
            gradients = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
            assert any("smop" in key for key in gradients)
            for key, p in eager.named_parameters():
                if p.grad is not None:
                    assert_close(gradients[key], p.grad, rtol=1e-3, atol=1e-4)
    assert model.last_routes.adapters == eager.last_routes.adapters
    assert torch.equal(model.last_routes.indices, eager.last_routes.indices)


def switches(name):
    """Between adapters, and to none."""
    kind = KINDS[name]
    eager, model = model_of(kind), model_of(kind)
    run = compiled(model)
    with torch.no_grad():
        for adapter in ("default", "short"):
            for each in (eager, model):
                each.set_adapter(adapter)
            assert_close(run(**batch(kind)).logits, eager(**batch(kind)).logits, **CLOSE)
        with model.disable_adapter():
            assert_close(run(**batch(kind)).logits, kind.model()(**batch(kind)).logits, **CLOSE)


# strategies and parameterisations are independent of each other, so one graph shows two of them
OTHER_WAYS = {
    "gumbel with penalties, residual": {
        "routing": "gumbel",
        "final_temperature": 0.5,
        "annealing_steps": 4,
        "load_balancing": 0.5,
        "z_loss": 0.5,
        "parameterisation": "residual",
        "hidden_size": 6,
    },
    "top-2, low-rank": {"top_k": 2, "parameterisation": "low-rank", "rank": 6},
    "hashed": {"routing": "hashed"},
}


def other_way(what):
    """Training with the loss that the model returns, twice over one graph."""
    kind = KINDS["t5"]
    eager, model = (without_dropout(adapted(kind, **OTHER_WAYS[what])).train() for _ in range(2))
    run = compiled(model)
    for seed, stance in ((1, "default"), (2, "fail_on_recompile")):
        made = batch(kind, seed=seed)
        expected = eager(**made)
        with torch.compiler.set_stance(stance):
            found = run(**made)
        assert_close(found.loss, expected.loss, **CLOSE)
        assert_close(found.logits, expected.logits, **CLOSE)
        assert torch.equal(model.last_routes.indices, eager.last_routes.indices)
        for each, output in ((eager, expected), (model, found)):
            each.zero_grad()
            output.loss.backward()
        others = dict(eager.named_parameters())
        for key, p in model.named_parameters():
            assert (p.grad is None) == (others[key].grad is None)
            if p.grad is not None:
                assert_close(p.grad, others[key].grad, rtol=1e-3, atol=1e-4)


def two_passes():
    """Stochastic routing with its divergence: the second pass, too, is compiled."""
    kind = KINDS["t5"]
    made = batch(kind)
    eager, model = (without_dropout(adapted(kind, routing="stochastic")).train() for _ in range(2))
    assert_close(compiled(model)(**made).loss, eager(**made).loss, **CLOSE)


TEN_SIZES = (("t5", True), ("llama", False), ("bert", True))


def ten_sizes(name, *, training):
    """Batches of ten sizes through one graph: nothing has an entry per row."""
    kind = KINDS[name]
    eager, model = (without_dropout(adapted(kind)).train(training) for _ in range(2))
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")  # others count what they compile in turn
    run = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    for rows in range(8, 18):  # unlike any other length, which would be taken for the same
        made = batch(kind, rows=rows)
        if name == "llama" and training:
            made["labels"] = made["input_ids"].index_fill(1, torch.arange(4), -100)
        with torch.set_grad_enabled(training):
            assert_close(run(**made).logits, eager(**made).logits, **CLOSE)
        assert torch.equal(model.last_routes.indices, eager.last_routes.indices)
        assert len(model.last_routes.adapters) == rows
    assert counter.frame_count == 1, f"{counter.frame_count} graphs"


CALM = ("single", "uniform", "fixed", "released", "stochastic")


def in_evaluation(routing):
    """The strategies that draw nothing, and stochastic's mean of all prompts."""
    kind = KINDS["bert"]  # the smallest graph
    eager, model = adapted(kind, routing=routing), adapted(kind, routing=routing)
    with torch.no_grad():
        found = compiled(model)(**batch(kind)).logits
        assert_close(found, eager(**batch(kind)).logits, **CLOSE)
    assert torch.equal(model.last_routes.indices, eager.last_routes.indices)


CASES = {
    **{f"{routing}, evaluation": (lambda r=routing: in_evaluation(r)) for routing in CALM},
    **{what: (lambda w=what: other_way(w)) for what in OTHER_WAYS},
    "two passes": two_passes,
    **{
        f"{name}, ten sizes, {'training' if training else 'evaluation'}": (
            lambda n=name, t=training: ten_sizes(n, training=t)
        )
        for name, training in TEN_SIZES
    },
    **{
        f"{name}, {'training' if training else 'evaluation'}, {'mixed' if mixed else 'one'}": (
            lambda n=name, t=training, m=mixed: equals_eager(n, training=t, mixed=m)
        )
        for name in THREE
        for training in (False, True)
        for mixed in (False, True)
    },
    "switching": lambda: switches("llama"),
}


def main():
    found = {}
    for case, check in CASES.items():
        try:
            check()
            found[case] = "fine"
        except Exception as error:  # reported as the test of the case
            found[case] = f"{type(error).__name__}: {error}"[:600]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
