"""What is trained in place of the prompts: it starts where they start, and is saved and loaded."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import T5Config, T5ForConditionalGeneration

from peft_smop import SMoPConfig
from peft_smop.errors import ConfigError
from peft_smop.tuner.parameterisation import LowRank, Residual
from tiny import KINDS, THREE, WIDTH, adapted, batch, decided, without_dropout

K, L, H, R = 4, 5, 6, 3
OPTIONS = {
    "residual": {"parameterisation": "residual", "hidden_size": H},
    "low-rank": {"parameterisation": "low-rank", "rank": R},
}
NETWORK = {
    "residual": 2 * WIDTH * H + H + WIDTH + 2 * WIDTH,
    "low-rank": R * WIDTH,
}
STORED = {"residual": K * L * WIDTH, "low-rank": K * L * R}
ROUTER = WIDTH * K


def fresh(name, *, seed=0, **options):
    """As `get_peft_model` gives it, with nothing drawn anew."""
    kind = KINDS[name]
    config = SMoPConfig(task_type=kind.task_type, seed=seed, **options)
    return get_peft_model(kind.model(), config).eval()


def stirred(model, adapter="default", seed=6):
    """Every parameter of an adapter moved away from its start, the network's scale as well."""
    decided(model, adapter)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.smop_layer[adapter].network.parameters():
            p.add_(0.5 * torch.randn(p.shape, generator=generator))
    return model.eval()


def logits(model, made):
    with torch.no_grad():
        return model(**made).logits


# -- formulas ------------------------------------------------------------------------------------


def test_residual_adds_the_network_s_output_to_each_virtual_token():
    """Two dimensions, one hidden unit: written out for the tokens (1, 2) and (-3, 1)."""
    network = Residual(2, 1, torch.Generator().manual_seed(0), torch.device("cpu"))
    with torch.no_grad():
        network.down.weight.copy_(torch.tensor([[1.0, 1.0]]))
        network.down.bias.fill_(-1.0)
        network.up.weight.copy_(torch.tensor([[2.0], [0.0]]))
        network.up.bias.copy_(torch.tensor([0.0, 1.0]))
        network.norm.weight.copy_(torch.tensor([0.5, 3.0]))
        network.norm.bias.copy_(torch.tensor([0.25, -1.0]))
    # hidden ReLU(1 + 2 - 1) = 2 and ReLU(-3 + 1 - 1) = 0; up (4, 1) and (0, 1);
    # two numbers normalised are (1, -1) and (-1, 1); scaled (0.75, -4) and (-0.25, 2)
    found = network(torch.tensor([[[1.0, 2.0], [-3.0, 1.0]]]))
    assert_close(found, torch.tensor([[[1.75, -2.0], [-3.25, 3.0]]]), rtol=1e-4, atol=1e-4)


def test_low_rank_is_coefficients_times_the_basis():
    network = LowRank(torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]]))
    found = network(torch.tensor([[[1.0, 2.0]], [[3.0, -1.0]]]))
    assert_close(found, torch.tensor([[[1.0, 2.0, 0.0]], [[3.0, -1.0, 7.0]]]))


# -- the start -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", THREE)
def test_residual_starts_with_exactly_the_prompts_of_direct(name):
    made = batch(KINDS[name])
    direct, residual = fresh(name), fresh(name, **OPTIONS["residual"])
    layer = residual.smop_layer
    assert torch.equal(layer["default"].soft_prompts(), direct.smop_layer["default"].prompts)
    assert torch.equal(layer["default"].router, direct.smop_layer["default"].router)
    assert torch.equal(logits(residual, made), logits(direct, made))


def test_a_residual_network_at_its_start_already_has_a_gradient():
    """The scale starts at zero, not the network, so that it can leave zero."""
    model = fresh("t5", **OPTIONS["residual"]).train()
    model(**batch(KINDS["t5"])).loss.backward()
    network = model.smop_layer["default"].network
    assert network.norm.weight.grad.abs().sum() > 0
    assert network.down.weight.abs().sum() > 0
    assert network.down.weight.abs().max() <= WIDTH**-0.5
    assert network.up.weight.abs().max() <= H**-0.5


@pytest.mark.parametrize("parameterisation", OPTIONS)
def test_a_seed_is_a_start(parameterisation):
    states = [
        fresh("t5", seed=seed, **OPTIONS[parameterisation]).smop_layer.state_dict()
        for seed in (3, 3, 4)
    ]
    for key, value in states[0].items():
        assert torch.equal(states[1][key], value)
    assert any(not torch.equal(states[2][key], value) for key, value in states[0].items())


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_low_rank_starts_at_the_best_approximation_in_its_rank(rank):
    """Eckart and Young: the singular value decomposition cut off."""
    direct = fresh("t5").smop_layer["default"].prompts.detach()
    model = fresh("t5", parameterisation="low-rank", rank=rank)
    u, s, v = torch.linalg.svd(direct.reshape(K * L, WIDTH).double(), full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ v[:rank]
    found = model.smop_layer["default"].soft_prompts().reshape(K * L, WIDTH)
    assert_close(found.double(), best, rtol=1e-4, atol=1e-4)
    assert (found - direct.reshape(K * L, WIDTH)).norm().item() == pytest.approx(
        s[rank:].square().sum().sqrt().item(), rel=1e-4
    )


@pytest.mark.parametrize("name", THREE)
def test_low_rank_of_full_rank_starts_where_direct_starts(name):
    made = batch(KINDS[name])
    direct = fresh(name)
    model = fresh(name, parameterisation="low-rank", rank=K * L)
    assert_close(
        model.smop_layer["default"].soft_prompts(),
        direct.smop_layer["default"].soft_prompts(),
        rtol=1e-4,
        atol=1e-5,
    )
    assert_close(logits(model, made), logits(direct, made), rtol=1e-3, atol=1e-4)


def test_defaults_are_64_hidden_units_and_rank_8_or_what_there_is():
    residual = fresh("t5", parameterisation="residual").smop_layer
    assert residual["default"].network.down.weight.shape == (64, WIDTH)
    low = fresh("t5", parameterisation="low-rank").smop_layer
    assert low["default"].prompts.shape == (K, L, 8)
    few = fresh("t5", parameterisation="low-rank", num_prompts=2, num_virtual_tokens=3).smop_layer
    assert few["default"].prompts.shape == (2, 3, 6)


def test_a_rank_beyond_the_embedding_s_width_is_refused_where_the_width_is_known():
    """40 virtual tokens in 32 dimensions have rank 32 at most."""
    with pytest.raises(ConfigError, match=r"rank=33 exceeds the embedding's width 32; lower rank"):
        fresh("t5", parameterisation="low-rank", rank=33, num_virtual_tokens=10)
    fresh("t5", parameterisation="low-rank", rank=32, num_virtual_tokens=10)


# -- counts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("parameterisation", OPTIONS)
def test_trainable_parameters_are_what_the_formula_says(parameterisation):
    """Residual: k l e and e h + h + h e + e + 2 e more. Low rank: k l r + r e. And the router."""
    model = fresh("t5", **OPTIONS[parameterisation])
    trainable = {key: p.numel() for key, p in model.named_parameters() if p.requires_grad}
    assert sum(trainable.values()) == STORED[parameterisation] + NETWORK[parameterisation] + ROUTER
    assert all("smop_" in key for key in trainable)
    assert model.get_nb_trainable_parameters()[0] == sum(trainable.values())


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("parameterisation", OPTIONS)
def test_on_the_meta_device_there_are_shapes_and_no_values(parameterisation, low_cpu_mem_usage):
    with torch.device("meta"):
        backbone = T5ForConditionalGeneration(
            T5Config(vocab_size=100, d_model=768, d_kv=64, d_ff=3072, num_layers=1, num_heads=12)
        )
    config = SMoPConfig(task_type="SEQ_2_SEQ_LM", **OPTIONS[parameterisation])
    model = get_peft_model(backbone, config, low_cpu_mem_usage=low_cpu_mem_usage)
    assert all(p.device.type == "meta" for p in model.parameters())
    expected = {
        "residual": 20 * 768 + 2 * 768 * H + H + 3 * 768 + 768 * 4,
        "low-rank": 20 * R + R * 768 + 768 * 4,
    }[parameterisation]
    assert model.get_nb_trainable_parameters()[0] == expected


# -- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("parameterisation", OPTIONS)
def test_gradients_are_the_chain_rule_through_the_prompts_of_direct(parameterisation):
    """The gradient of direct at the same prompts, carried on through the parameterisation."""
    made = batch(KINDS["t5"])
    model = without_dropout(stirred(fresh("t5", **OPTIONS[parameterisation]))).train()
    layer = model.smop_layer
    direct = without_dropout(fresh("t5")).train()
    with torch.no_grad():
        direct.smop_layer["default"].prompts.copy_(layer["default"].soft_prompts())
        direct.smop_layer["default"].router.copy_(layer["default"].router)
    direct(**made).loss.backward()
    outer = direct.smop_layer["default"].prompts.grad
    own = [layer["default"].prompts, *layer["default"].network.parameters()]
    expected = torch.autograd.grad(layer["default"].soft_prompts(), own, outer)
    model(**made).loss.backward()
    for p, gradient in zip(own, expected, strict=True):
        assert gradient.abs().sum() > 0
        assert_close(p.grad, gradient, rtol=1e-3, atol=1e-5)
    assert_close(
        layer["default"].router.grad,
        direct.smop_layer["default"].router.grad,
        rtol=1e-3,
        atol=1e-5,
    )


# -- saved, loaded, beside others ----------------------------------------------------------------


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("parameterisation", OPTIONS)
@pytest.mark.parametrize("name", THREE)
def test_saved_and_loaded_it_answers_the_same_to_the_last_bit(
    name, parameterisation, low_cpu_mem_usage, tmp_path
):
    made = batch(KINDS[name])
    model = stirred(fresh(name, **OPTIONS[parameterisation]))
    expected = logits(model, made)
    model.save_pretrained(tmp_path)
    options = {"low_cpu_mem_usage": low_cpu_mem_usage}
    again = PeftModel.from_pretrained(KINDS[name].model(), tmp_path, **options).eval()
    assert torch.equal(logits(again, made), expected)
    assert not any(t.is_meta for t in (*again.parameters(), *again.buffers()))
    assert not any(p.requires_grad for p in again.parameters())
    again = PeftModel.from_pretrained(
        KINDS[name].model(), tmp_path, is_trainable=True, **options
    ).eval()
    moving = [key for key, p in again.named_parameters() if p.requires_grad and "smop_" in key]
    assert len(moving) == {"residual": 2 + 6, "low-rank": 2 + 1}[parameterisation]


@pytest.mark.parametrize("parameterisation", OPTIONS)
def test_the_checkpoint_holds_the_adapter_and_nothing_else(parameterisation, tmp_path):
    fresh("t5", **OPTIONS[parameterisation]).save_pretrained(tmp_path)
    found = {
        key.removeprefix("base_model.model.smop.smop_adapters."): tuple(value.shape)
        for key, value in load_file(tmp_path / "adapter_model.safetensors").items()
    }
    network = {
        "residual": {
            "network.down.weight": (H, WIDTH),
            "network.down.bias": (H,),
            "network.up.weight": (WIDTH, H),
            "network.up.bias": (WIDTH,),
            "network.norm.weight": (WIDTH,),
            "network.norm.bias": (WIDTH,),
        },
        "low-rank": {"network.basis": (R, WIDTH)},
    }[parameterisation]
    stored = (K, L, WIDTH if parameterisation == "residual" else R)
    assert found == {
        "prompts": stored,
        "router": (WIDTH, K),
        "steps": (),
        "settings": (),
        **network,
    }


@pytest.mark.parametrize("adapter", ["down", "up", "norm", "weight", "basis", "prompts", "router"])
@pytest.mark.parametrize("first", [True, False], ids=["first", "second"])
def test_an_adapter_is_not_named_like_a_part_of_adapters_which_could_not_be_saved(adapter, first):
    """PEFT leaves out what carries another adapter's name anywhere in its key."""
    kind = KINDS["t5"]
    plain = SMoPConfig(task_type=kind.task_type)
    refused = pytest.raises(ConfigError, match=f"adapter_name='{adapter}' is the name of a part")
    if first:
        with refused:
            get_peft_model(kind.model(), plain, adapter_name=adapter)
        return
    model = adapted(kind)
    with refused:
        model.add_adapter(adapter, plain)
    assert list(model.peft_config) == ["default"]
    model.add_adapter("free", plain)  # and the model goes on


@pytest.mark.parametrize("parameterisation", OPTIONS)
def test_beside_another_adapter_it_is_switched_trained_and_deleted(parameterisation, tmp_path):
    kind, made = KINDS["t5"], batch(KINDS["t5"])
    model = adapted(kind, adapter="plain")
    plain = logits(model, made)
    config = SMoPConfig(task_type=kind.task_type, **OPTIONS[parameterisation])
    model.add_adapter("made", config)
    stirred(model, "made")
    assert torch.equal(logits(model, made), plain)
    frozen = model.smop_layer["made"].network
    assert not any(p.requires_grad for p in frozen.parameters())
    model.set_adapter("made")
    assert all(p.requires_grad for p in frozen.parameters())
    assert not model.smop_layer["plain"].prompts.requires_grad
    own = logits(model, made)
    assert not torch.allclose(own, plain)
    model.save_pretrained(tmp_path, selected_adapters=["made"])
    model.load_adapter(tmp_path / "made", "again")
    model.set_adapter("again")
    assert torch.equal(logits(model.eval(), made), own)
    model.set_adapter("plain")
    for name in ("made", "again"):
        model.delete_adapter(name)
    left = {key for key in model.state_dict() if "smop_" in key}
    assert {key.rsplit(".", 1)[1] for key in left} == {"prompts", "router", "steps", "settings"}
    assert torch.equal(logits(model, made), plain)


@pytest.mark.parametrize("parameterisation", OPTIONS)
@pytest.mark.parametrize("name", THREE)
def test_in_mixed_batches_every_row_is_what_it_is_alone(name, parameterisation):
    """Two of one parameterisation share a group; a direct one and base rows stand beside them."""
    kind, made = KINDS[name], batch(KINDS[name])
    model = stirred(fresh(name, **OPTIONS[parameterisation]))
    for adapter, options in (("twin", OPTIONS[parameterisation]), ("plain", {})):
        model.add_adapter(adapter, SMoPConfig(task_type=kind.task_type, **options))
        if options:
            stirred(model, adapter, seed=9)
        else:
            decided(model, adapter)
    names = ["default", "twin", "plain", "__base__"]
    with torch.no_grad():
        mixed = model(**made, adapter_names=names).logits
        for i, adapter in enumerate(names):
            if adapter == "__base__":
                expected = kind.model()(**made).logits
            else:
                model.set_adapter(adapter)
                expected = model(**made).logits
            keep = made["attention_mask"][i].bool() if name == "llama" else slice(None)
            assert_close(mixed[i][keep], expected[i][keep], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("parameterisation", OPTIONS)
def test_on_a_bf16_backbone_everything_trained_stays_fp32(parameterisation, tmp_path):
    kind, made = KINDS["llama"], batch(KINDS["llama"])
    config = SMoPConfig(task_type=kind.task_type, **OPTIONS[parameterisation])
    model = stirred(get_peft_model(kind.model().to(torch.bfloat16), config))
    expected = logits(model, made)
    assert expected.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.float32, torch.int64}
    again = PeftModel.from_pretrained(kind.model().to(torch.bfloat16), tmp_path).eval()
    assert torch.equal(logits(again, made), expected)
    for p in again.smop_layer.parameters():
        assert p.dtype == torch.float32


@pytest.mark.parametrize("parameterisation", OPTIONS)
def test_a_model_that_was_cast_as_a_whole_computes_and_is_left_as_it_was_cast(parameterisation):
    made = batch(KINDS["llama"])
    model = stirred(fresh("llama", **OPTIONS[parameterisation])).bfloat16()
    assert logits(model, made).dtype == torch.bfloat16
    assert {p.dtype for p in model.smop_layer.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("parameterisation", OPTIONS)
def test_moved_to_a_device_the_network_goes_with_its_prompts(parameterisation):
    layer = fresh("t5", **OPTIONS[parameterisation]).smop_layer
    layer._move_adapter_to_device_of_base_layer("default", device=torch.device("meta"))
    assert {p.device.type for p in layer.parameters()} == {"meta"}
    # without values there is nothing to move, only to load
    layer._move_adapter_to_device_of_base_layer("default", device=torch.device("cpu"))
    assert {p.device.type for p in layer.parameters()} == {"meta"}


@pytest.mark.parametrize("parameterisation", OPTIONS)
def test_another_adapter_may_start_from_its_prompts(parameterisation, tmp_path):
    """From the prompts that it gives, not from what it stores."""
    model = stirred(fresh("t5", **OPTIONS[parameterisation]))
    model.save_pretrained(tmp_path)
    expected = model.smop_layer["default"].soft_prompts()
    other = fresh("t5", init="adapter", init_adapter=str(tmp_path))
    assert_close(other.smop_layer["default"].soft_prompts(), expected)
    assert torch.equal(other.smop_layer["default"].router, model.smop_layer["default"].router)


@pytest.mark.parametrize("parameterisation", OPTIONS)
def test_training_moves_every_part(parameterisation):
    model, made = fresh("t5", **OPTIONS[parameterisation]).train(), batch(KINDS["t5"])
    before = {key: p.detach().clone() for key, p in model.smop_layer.named_parameters()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model(**made).loss.backward()
        optimizer.step()
    for key, p in model.smop_layer.named_parameters():
        assert not torch.equal(p, before[key]), key
