"""h ← h + U f(D h + b_D) + b_U, by hand, and where it stands in every kind of backbone."""

import math

import pytest
import torch
from bottlenecks import ATTENTION, FEED_FORWARD, adapted, config, tensors
from peft import get_peft_model
from torch import nn
from torch.testing import assert_close
from transformers.pytorch_utils import Conv1D

from peft_smop.bottleneck import BottleneckConfig
from peft_smop.bottleneck.layer import BottleneckLayer
from tiny import KINDS, batch

PLACES = {
    "houlsby": {name: ATTENTION[name] + FEED_FORWARD[name] for name in KINDS},
    "pfeiffer": FEED_FORWARD,
}


class Two(nn.Module):
    """A linear module of width 2 that hands its input through."""

    def __init__(self, linear):
        super().__init__()
        self.end = linear
        with torch.no_grad():
            linear.weight.copy_(torch.eye(2))
            linear.bias.zero_()

    def forward(self, x):
        return self.end(x)


@pytest.mark.parametrize("build", [nn.Linear, Conv1D])
@pytest.mark.parametrize(
    ("activation", "f"),
    [
        ("relu", lambda z: max(z, 0.0)),
        ("gelu", lambda z: z * (1 + math.erf(z / math.sqrt(2))) / 2),
        ("silu", lambda z: z / (1 + math.exp(-z))),
        ("tanh", math.tanh),
    ],
)
def test_the_formula_by_hand(build, activation, f):
    options = {"bottleneck_size": 1, "activation": activation, "target_modules": ["end"]}
    model = get_peft_model(Two(build(2, 2)), BottleneckConfig(**options))
    values = {
        "end.bottleneck_down.weight": [[2.0, -1.0]],
        "end.bottleneck_down.bias": [0.5],
        "end.bottleneck_up.weight": [[3.0], [-2.0]],
        "end.bottleneck_up.bias": [0.25, 10.0],
    }
    with torch.no_grad():
        for key, p in tensors(model).items():
            p.copy_(torch.tensor(values[key]))
    # D h + b_D: 2·1 − 1·4 + 0.5 = −1.5 for the first row, 2·3 − 1·1 + 0.5 = 5.5 for the second
    low, high = f(-1.5), f(5.5)
    expected = [
        [1 + 3 * low + 0.25, 4 - 2 * low + 10],
        [3 + 3 * high + 0.25, 1 - 2 * high + 10],
    ]
    found = model(torch.tensor([[1.0, 4.0], [3.0, 1.0]]))
    assert_close(found, torch.tensor(expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("placement", PLACES)
@pytest.mark.parametrize("name", KINDS)
def test_every_block_has_its_bottlenecks_and_nothing_else_has(name, placement):
    kind = KINDS[name]
    model = get_peft_model(kind.model(), config(kind, placement=placement))
    wrapped = {
        key for key, m in model.get_base_model().named_modules() if isinstance(m, BottleneckLayer)
    }
    assert wrapped == set(PLACES[placement][name])


@pytest.mark.parametrize("placement", PLACES)
@pytest.mark.parametrize("name", KINDS)
def test_the_backbone_with_the_formula_hooked_in_answers_alike(name, placement):
    kind, made = KINDS[name], batch(KINDS[name])
    model, bare = adapted(kind, placement=placement), kind.model()
    own = tensors(model)
    for place in PLACES[placement][name]:
        down, b_down, up, b_up = (
            own[f"{place}.bottleneck_{part}"]
            for part in ("down.weight", "down.bias", "up.weight", "up.bias")
        )
        assert (down.shape, up.shape) == ((4, 32), (32, 4))
        bare.get_submodule(place).register_forward_hook(
            lambda _, __, h, down=down, b_down=b_down, up=up, b_up=b_up: (
                h + (h @ down.T + b_down).clamp(min=0) @ up.T + b_up
            )
        )
    with torch.no_grad():
        expected, found = bare(**made).logits, model(**made).logits
        assert (found - kind.model()(**made).logits).abs().max() > 1e-3
    assert_close(found, expected)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh"])
@pytest.mark.parametrize("name", KINDS)
def test_at_the_start_the_model_is_the_bare_one_to_the_last_bit(name, activation):
    kind, made = KINDS[name], batch(KINDS[name])
    model = get_peft_model(kind.model(), config(kind, activation=activation)).eval()
    with torch.no_grad():
        assert torch.equal(model(**made).logits, kind.model()(**made).logits)


def test_u_starts_at_zero_and_d_as_a_linear_layer_does():
    start = tensors(get_peft_model(KINDS["t5"].model(), config(KINDS["t5"], bottleneck_size=48)))
    drawn = torch.cat([p.flatten() for key, p in start.items() if "down" in key])
    assert all(not p.any() for key, p in start.items() if "up" in key)
    bound = 1 / math.sqrt(32)
    assert bound * 0.99 < drawn.abs().max() < bound
    # uniform on ±bound: mean 0, variance bound²/3
    assert abs(drawn.mean()) < bound * 0.02
    assert_close(drawn.var(), torch.tensor(bound**2 / 3), rtol=0.03, atol=0)
    downs = [p for key, p in start.items() if key.endswith("down.weight")]
    assert not any(torch.equal(downs[0], other) for other in downs[1:])


def test_the_seed_alone_decides_the_start_and_the_global_state_is_left_alone():
    def start(seed, **options):
        return tensors(get_peft_model(KINDS["t5"].model(), config(KINDS["t5"], seed=seed)))

    model = KINDS["t5"].model()
    before = torch.get_rng_state()
    one = tensors(get_peft_model(model, config(KINDS["t5"], seed=1)))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    again, other = start(1), start(2)
    for key, p in one.items():
        assert torch.equal(p, again[key])
        if "down" in key:
            assert not torch.equal(p, other[key])


@pytest.mark.parametrize("name", ["t5", "bert"])
def test_a_bottleneck_draws_the_same_whatever_else_is_adapted(name):
    kind = KINDS[name]
    both = tensors(get_peft_model(kind.model(), config(kind)))
    one = tensors(get_peft_model(kind.model(), config(kind, placement="pfeiffer")))
    assert all(torch.equal(p, both[key]) for key, p in one.items())


def test_target_modules_may_be_named_or_matched():
    kind = KINDS["llama"]
    for targets, count in [(["v_proj"], 2), ("model.layers.1.*_proj", 7), ("all-linear", 14)]:
        model = get_peft_model(kind.model(), config(kind, target_modules=targets))
        assert sum(isinstance(m, BottleneckLayer) for m in model.modules()) == count
