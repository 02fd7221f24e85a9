"""One graph without a break, and the same numbers, in evaluation and in training."""

import pytest
import torch
from torch.testing import assert_close

from peft_smop import SMoPConfig
from tiny import KINDS, THREE, adapted, batch, decided, without_dropout

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def model_of(kind):
    model = without_dropout(adapted(kind))
    model.add_adapter("short", SMoPConfig(task_type=kind.task_type, num_virtual_tokens=2))
    return decided(model, "short", seed=8)


def loss_of(output):
    return (output.logits * torch.linspace(-1, 1, output.logits.shape[-1])).sum()


@pytest.mark.parametrize("mixed", [False, True], ids=["one adapter", "mixed"])
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("name", THREE)
def test_a_compiled_model_is_the_eager_one_with_the_same_noise(name, training, mixed):
    kind = KINDS[name]
    made = {**batch(kind)}
    if mixed:
        made["adapter_names"] = ["default", "short", "__base__", "default"]
    eager, compiled = (model_of(kind).train(training) for _ in range(2))
    run = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    for _ in range(2):  # two steps, so that the count of steps matters
        with torch.set_grad_enabled(training):
            expected, found = eager(**made), run(**made)
        assert_close(found.logits, expected.logits, **CLOSE)
        if training:
            for output, model in ((expected, eager), (found, compiled)):
                model.zero_grad()
                loss_of(output).backward()
            gradients = {k: p.grad for k, p in compiled.named_parameters() if p.grad is not None}
            assert any("smop" in key for key in gradients)
            for key, p in eager.named_parameters():
                if p.grad is not None:
                    assert_close(gradients[key], p.grad, rtol=1e-3, atol=1e-4)
    steps = compiled.smop_layer.smop_steps["default"].item()
    assert steps == (2 if training else 0)
    routes, other = compiled.last_routes, eager.last_routes
    assert routes.adapters == other.adapters
    assert torch.equal(routes.indices, other.indices)


def test_another_batch_of_the_same_shape_is_not_compiled_again():
    kind = KINDS["t5"]
    model = model_of(kind).train()
    run = torch.compile(model, fullgraph=True, backend="aot_eager")
    run(**batch(kind, seed=1))
    with torch.compiler.set_stance("fail_on_recompile"):
        for seed in (2, 3):
            run(**batch(kind, seed=seed))
