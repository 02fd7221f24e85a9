"""Every routing strategy and parameterisation in whole models: saved, generated with, mixed,
resumed, forced and revived."""

import copy

import pytest
import torch
from peft import PeftModel
from torch.testing import assert_close

from by_hand import ByHand
from peft_smop import SMoPConfig
from peft_smop.errors import ConfigError
from peft_smop.tuner.noise import choice, fingerprints
from peft_smop.tuner.strategies import STRATEGIES, Linear
from tiny import KINDS, THREE, adapted, answer, attended, batch, decided, row, without_dropout

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
OPTIONS = {
    **{name: {"routing": name} for name in STRATEGIES},
    "top-2": {"top_k": 2},
    "dropout": {"perturbation": False, "router_dropout": 0.3},
    "annealed": {"temperature": 2.0, "final_temperature": 0.5, "annealing_steps": 4},
    "annealed gumbel": {"routing": "gumbel", "final_temperature": 0.5, "annealing_steps": 4},
    "residual": {"parameterisation": "residual", "hidden_size": 6},
    "low-rank": {"parameterisation": "low-rank", "rank": 6},
}
INDEPENDENT = [name for name in OPTIONS if name != "released"]


def built(name, what, **more):
    """A model with this strategy or parameterisation, and a network that is not at its start."""
    return moved(adapted(KINDS[name], **OPTIONS[what], **more))


def moved(model, adapter="default"):
    network = model.smop_layer[adapter].network
    if network is not None:
        generator = torch.Generator().manual_seed(8)
        with torch.no_grad():
            for p in network.parameters():
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return model


def logits(model, made, **more):
    with torch.no_grad():
        return model(**made, **more).logits


def weights(what, w, content, k):
    """What the strategy's formula gives a row in evaluation at step 0, for all prompts."""
    p = w.softmax(dim=0) if w is not None else None
    one = torch.eye(k)
    if what in ("stochastic", "uniform"):
        return torch.full((k,), 1 / k)
    if what == "single":
        return one[0]
    if what == "hashed":
        return one[choice(content, k)[0]]
    if what in ("gumbel", "annealed gumbel", "posterior"):
        return one[w.argmax()]
    if what == "fixed":
        return one[0] * p.max()
    if what == "annealed":
        return (w / 2).softmax(dim=0).max() * one[w.argmax()]
    if what == "top-2":
        return p * (p >= p.sort().values[-2])
    return p.max() * one[p.argmax()]


@pytest.mark.parametrize("what", OPTIONS)
@pytest.mark.parametrize("name", THREE)
def test_a_row_s_answer_is_the_bare_model_s_behind_the_formula_s_prompt(name, what):
    kind, bare = KINDS[name], KINDS[name].model()
    model = built(name, what)
    layer = model.smop_layer
    for i in range(3):
        own = row(batch(kind), i)
        x = bare.get_input_embeddings()(own["input_ids"])
        prompts = layer["default"].soft_prompts()
        router = layer["default"].router
        w = None if router is None else x[0].mean(dim=0) @ router
        per_prompt = weights(what, w, fingerprints(own["input_ids"], None), len(prompts))
        prompt = sum(weight * p for weight, p in zip(per_prompt, prompts, strict=True))
        with torch.no_grad():
            expected = answer(kind, bare, torch.cat([prompt[None], x], dim=1), own)
        assert_close(logits(model, own), expected, **CLOSE)


@pytest.mark.parametrize("what", INDEPENDENT)
@pytest.mark.parametrize("name", THREE)
def test_rows_do_not_depend_on_their_neighbours(name, what):
    kind = KINDS[name]
    model, made = built(name, what), batch(kind)
    whole = logits(model, made)
    for i in range(4):
        alone = logits(model, row(made, i))
        assert_close(attended(kind, made, whole, i), alone, **CLOSE)


@pytest.mark.parametrize("name", THREE)
def test_released_predictions_depend_on_the_neighbours(name):
    kind = KINDS[name]
    model, made = built(name, "released"), batch(kind)
    whole = logits(model, made)
    p = model.last_routes.probabilities
    prompts = model.smop_layer["default"].prompts
    total = sum(prompts[c] for c in model.last_routes.chosen)
    bare = kind.model()
    for i in (0, 3):  # without padding
        own = row(made, i)
        x = bare.get_input_embeddings()(own["input_ids"])
        with torch.no_grad():
            expected = answer(kind, bare, torch.cat([(p[i, 0] * total)[None], x], dim=1), own)
        assert_close(whole[i : i + 1], expected, **CLOSE)
        if name != "bert":  # whose random weights hardly mix tokens
            assert not torch.allclose(logits(model, own), whole[i : i + 1], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("names", [["default", "b"] * 2, ["default", "__base__"] * 2])
def test_released_is_refused_in_a_mixed_batch(names, training):
    kind = KINDS["t5"]
    model = built("t5", "released")
    model.add_adapter("b", SMoPConfig(task_type=kind.task_type))
    with pytest.raises(ConfigError, match="cannot share a batch"):
        model.train(training)(**batch(kind), adapter_names=names)
    model(**batch(kind), adapter_names=["default"] * 4)  # its own batch


# -- saved ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", OPTIONS)
@pytest.mark.parametrize("name", ["t5", "llama"])
def test_saved_and_loaded_it_is_the_same_to_the_last_bit(name, what, tmp_path):
    kind = KINDS[name]
    model, made = built(name, what), batch(kind)
    model.smop_layer["default"].steps.fill_(3)
    expected = logits(model, made)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(kind.model(), tmp_path, adapter_name="x").eval()
    assert torch.equal(logits(again, made), expected)
    assert again.smop_layer["x"].strategy == model.smop_layer["default"].strategy
    assert again.smop_layer["x"].steps == 3
    before = model.peft_config["default"]
    for option in ("routing", "load_balancing", "parameterisation", *OPTIONS[what]):
        assert getattr(again.peft_config["x"], option) == getattr(before, option)


def test_penalties_are_saved_with_the_adapter(tmp_path):
    kind = KINDS["t5"]
    model, made = adapted(kind, load_balancing=0.5, z_loss=0.25), batch(kind)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(kind.model(), tmp_path, is_trainable=True)
    for each in (model, again):
        without_dropout(each).train()
    assert torch.equal(again(**made).loss, model(**made).loss)
    with again.terms_apart() as apart:
        again(**made)
    assert apart.terms["default"] > 0.5


# -- generated with ------------------------------------------------------------------------------

NEW = 3
GREEDY = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
BEAMS = {**GREEDY, "num_beams": 2}


def generated(model, made, **options):
    with torch.no_grad():
        return model.generate(**made, **options)[:, -NEW:]


@pytest.mark.parametrize("what", OPTIONS)
@pytest.mark.parametrize("name", ["t5", "llama"])
def test_generation_keeps_the_route_of_the_input_with_and_without_a_cache(name, what):
    """Greedy tokens are those of the full forward over the same route, one position each."""
    kind = KINDS[name]
    model, made = built(name, what), batch(kind)
    made.pop("labels", None)
    made["attention_mask"][1] = 1
    new = generated(model, made, **GREEDY)
    routes = model.last_routes
    assert torch.equal(generated(model, made, **GREEDY, use_cache=False), new)
    if name == "t5":
        start = torch.full((4, 1), model.config.decoder_start_token_id)
        expected = logits(model, made, decoder_input_ids=torch.cat([start, new[:, :-1]], dim=1))
    else:
        ids = torch.cat([made["input_ids"], new], dim=1)
        mask = torch.cat([made["attention_mask"], torch.ones_like(new)], dim=1)
        labels = torch.cat([torch.full_like(made["input_ids"], -100), new], dim=1)
        expected = logits(model, {"input_ids": ids, "attention_mask": mask, "labels": labels})
        expected = expected[:, 6:-1]
    # min_new_tokens forbids the end
    ends = model.generation_config.eos_token_id
    if ends is not None:
        expected[..., ends] = float("-inf")
    assert torch.equal(expected.argmax(dim=-1), new)
    assert torch.equal(model.last_routes.chosen, routes.chosen)
    assert_close(model.last_routes.probabilities, routes.probabilities)


@pytest.mark.parametrize("what", INDEPENDENT)
@pytest.mark.parametrize("name", ["t5", "llama"])
def test_under_beams_rows_generate_what_they_generate_alone(name, what):
    kind = KINDS[name]
    model, made = built(name, what), batch(kind)
    made.pop("labels", None)
    made["attention_mask"][1] = 1
    whole = generated(model, made, **BEAMS)
    assert torch.equal(generated(model, made, **BEAMS, use_cache=False), whole)
    for i in (0, 2):
        assert torch.equal(generated(model, row(made, i), **BEAMS)[0], whole[i])


# -- mixed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", INDEPENDENT)
@pytest.mark.parametrize("name", THREE)
def test_in_a_mixed_batch_every_row_is_what_it_is_alone(name, what):
    """Beside another strategy, base rows, and a second adapter of the same strategy."""
    kind, made = KINDS[name], batch(KINDS[name], rows=6)
    model = built(name, what)
    others = (("twin", OPTIONS[what]), ("other", {"routing": "gumbel", "num_virtual_tokens": 2}))
    for number, (adapter, options) in enumerate(others):
        model.add_adapter(adapter, SMoPConfig(task_type=kind.task_type, **options))
        moved(decided(model, adapter, seed=40 + number), adapter)
    names = ["default", "other", "__base__", "twin", "default", "twin"]
    mixed = logits(model, made, adapter_names=names)
    routes = model.last_routes
    for i, adapter in enumerate(names):
        own = row(made, i)
        if adapter == "__base__":
            expected = logits(kind.model(), own)
            assert routes.chosen[i] == -1
        else:
            model.set_adapter(adapter)
            expected = logits(model, own)
            assert model.last_routes.chosen[0] == routes.chosen[i]
        assert_close(attended(kind, made, mixed, i), expected, **CLOSE)


@pytest.mark.parametrize("what", [name for name in INDEPENDENT if name != "stochastic"])
def test_in_training_too_a_mixed_batch_has_the_noise_and_gradients_of_separate_ones(what):
    kind, made = KINDS["t5"], batch(KINDS["t5"])
    names = ["default", "other", "__base__", "default"]

    def zoo():
        model = built("t5", what)
        model.add_adapter("other", SMoPConfig(task_type=kind.task_type, seed=5))
        model.set_requires_grad(["other"])
        return without_dropout(decided(model, "other")).train()

    mixed, alone = zoo(), zoo()
    for step in range(2):
        for model in (mixed, alone):
            model.smop_layer["default"].steps.fill_(step)
        found = mixed(**made, adapter_names=names).logits
        expected = alone(**{key: value[[0, 3]] for key, value in made.items()}).logits
        assert_close(found[[0, 3]], expected, **CLOSE)
    found[[0, 3]].square().sum().backward()
    expected.square().sum().backward()
    other = dict(alone.named_parameters())
    for key, p in mixed.named_parameters():
        if p.grad is not None and "default" in key:
            assert_close(p.grad, other[key].grad, rtol=1e-3, atol=1e-3)
    assert other["base_model.model.smop.smop_adapters.default.prompts"].grad.abs().sum() > 0


# -- resumed -------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", OPTIONS)
def test_training_goes_on_from_a_checkpoint_to_the_last_bit(what, tmp_path):
    """Annealing, noise and random routes continue: all hang on the saved count of steps."""
    kind, made = KINDS["t5"], batch(KINDS["t5"])

    def train(model, steps):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = model(**made).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    straight = without_dropout(built("t5", what)).train()
    expected = train(straight, 4)
    first = without_dropout(built("t5", what)).train()
    found = train(first, 2)
    first.save_pretrained(tmp_path)
    resumed = PeftModel.from_pretrained(kind.model(), tmp_path, is_trainable=True)
    found += train(without_dropout(resumed).train(), 2)
    assert found == expected
    others = dict(straight.named_parameters())
    for key, p in resumed.named_parameters():
        assert torch.equal(p, others[key]), key
    assert resumed.smop_layer["default"].steps == 4
    # and it is the count that does it: where it matters a run that forgets it goes elsewhere
    forgetful = PeftModel.from_pretrained(kind.model(), tmp_path, is_trainable=True)
    forgetful.smop_layer["default"].steps.zero_()
    same = train(without_dropout(forgetful).train(), 2) == expected[2:]
    assert same is (what in ("single", "uniform", "hashed", "fixed"))


# -- hashed --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_hashed_routes_ignore_padding_and_read_the_order(name):
    model = built(name, "hashed", num_prompts=64)
    ids = torch.tensor([[5, 6, 7, 8]])
    decoder = {"decoder_input_ids": torch.zeros(1, 1, dtype=torch.int64)} if name == "t5" else {}

    def chosen(ids, mask=None):
        made = {"input_ids": ids, **({} if mask is None else {"attention_mask": mask})}
        logits(model, made, **decoder)
        return int(model.last_routes.chosen[0])

    own = chosen(ids)
    assert own == int(choice(fingerprints(ids, None), 64)[0])
    for left, right in ((2, 0), (0, 3), (1, 1)):
        padded = torch.nn.functional.pad(ids, (left, right), value=9)
        mask = torch.nn.functional.pad(torch.ones_like(ids), (left, right))
        assert chosen(padded, mask) == own
    assert chosen(ids.flip(1)) != own


def test_hashed_in_training_reads_what_it_will_see_at_inference():
    """A causal LM's answer is in its input in training; the context alone decides."""
    model = built("llama", "hashed", num_prompts=64)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    labels = torch.tensor([[-100, -100, -100, 8, 9]])
    model.train()(input_ids=ids, labels=labels)
    trained = int(model.last_routes.chosen[0])
    logits(model.eval(), {"input_ids": ids[:, :3]})
    assert int(model.last_routes.chosen[0]) == trained


@pytest.mark.parametrize("name", THREE)
def test_hashed_refuses_embeddings(name):
    model, made = built(name, "hashed"), batch(KINDS[name])
    x = model.get_input_embeddings()(made.pop("input_ids"))
    with pytest.raises(ConfigError, match=r"give input_ids, not inputs_embeds"):
        model(inputs_embeds=x, **made)


# -- forced --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        ({}, lambda w: w.softmax(0).max()),
        ({"temperature": 2.0}, lambda w: (w / 2).softmax(0).max()),
        ({"routing": "gumbel"}, lambda w: torch.tensor(1.0)),
        ({"routing": "fixed", "fixed_prompt": 1}, lambda w: w.softmax(0).max()),
        ({"routing": "released"}, lambda w: w.softmax(0).max()),
        ({"parameterisation": "low-rank", "rank": 6}, lambda w: w.softmax(0).max()),
    ],
    ids=["linear", "temperature", "gumbel", "fixed", "released", "low-rank"],
)
@pytest.mark.parametrize("j", [0, 3])
def test_a_forced_prompt_has_the_scale_of_the_row_s_own_choice(options, scale, j):
    kind, bare = KINDS["t5"], KINDS["t5"].model()
    model, made = adapted(kind, **options), batch(kind)
    before = logits(model, made)
    routes = model.last_routes
    with model.forced_prompt(j):
        forced = logits(model, made)
        assert model.last_routes.chosen.tolist() == [j] * 4
        assert_close(model.last_routes.logits, routes.logits)
    for i in range(4):
        own = row(made, i)
        x = bare.get_input_embeddings()(own["input_ids"])
        w = x[0].mean(dim=0) @ model.smop_layer["default"].router
        prompt = scale(w) * model.smop_layer["default"].soft_prompts()[j]
        with torch.no_grad():
            expected = answer(kind, bare, torch.cat([prompt[None], x], dim=1), own)
        assert_close(forced[i : i + 1], expected, **CLOSE)
    assert torch.equal(logits(model, made), before)
    assert torch.equal(model.last_routes.indices, routes.indices)


def test_a_prompt_is_free_again_after_an_error_inside():
    model, made = adapted(KINDS["t5"]), batch(KINDS["t5"])
    before = logits(model, made)
    with pytest.raises(RuntimeError, match="inside"), model.forced_prompt(2):  # noqa: PT012
        assert not torch.equal(logits(model, made), before)
        raise RuntimeError("inside")
    assert torch.equal(logits(model, made), before)
    assert model.smop_layer["default"].strategy == Linear(perturbation=True)


def test_another_adapter_s_prompt_may_be_forced_and_generation_follows():
    kind = KINDS["llama"]
    model, made = adapted(kind), batch(kind)
    model.add_adapter("b", SMoPConfig(task_type=kind.task_type, num_prompts=2))
    decided(model, "b", seed=9)
    before = logits(model, made)
    with model.forced_prompt(1, "b"):
        assert torch.equal(logits(model, made), before)
        generated(model, made, **GREEDY, adapter_names=["b", "default", "b", "__base__"])
        assert model.last_routes.chosen[[0, 2]].tolist() == [1, 1]
        assert model.last_routes.chosen[3] == -1


def test_what_cannot_be_forced_is_refused():
    model = adapted(KINDS["t5"])
    for index in (4, -1, True, 1.5):
        with (
            pytest.raises(
                ConfigError,
                match=f"prompt {index} is not one of the 4 of adapter 'default'; choose 0",
            ),
            model.forced_prompt(index),
        ):
            pass
    with (
        pytest.raises(ConfigError, match="no adapter 'b'"),
        model.forced_prompt(0, "b"),
    ):
        pass
    model.add_adapter("c", SMoPConfig(task_type="SEQ_2_SEQ_LM"))
    model.base_model.set_adapter(["default", "c"])
    with (
        pytest.raises(ConfigError, match=r"2 adapters are active \(default, c\); name the one"),
        model.forced_prompt(0),
    ):
        pass


@pytest.mark.parametrize("routing", ["uniform", "stochastic", "hashed"])
def test_where_no_router_chooses_a_forced_prompt_is_unscaled(routing):
    kind = KINDS["t5"]
    made, plain = batch(kind), adapted(kind, routing="single")
    model = adapted(kind, routing=routing, num_prompts=3)
    with torch.no_grad():
        plain.smop_layer["default"].prompts.copy_(model.smop_layer["default"].prompts[2:])
    with model.forced_prompt(2):
        assert_close(logits(model, made), logits(plain, made), **CLOSE)
        assert model.last_routes.chosen.tolist() == [2] * 4


# -- revived -------------------------------------------------------------------------------------


def small_layer(**options):
    generator = torch.Generator().manual_seed(2)
    layer = ByHand()
    layer.add_adapter(
        "a",
        prompts=torch.randn(5, 7, 16, generator=generator) * 3,
        router=torch.randn(16, 5, generator=generator) * 0.2,
        strategy=Linear(),
        seed=0,
        **options,
    )
    return layer


def test_revived_prompts_and_router_columns_are_near_copies_and_others_stay():
    layer = small_layer()
    before = copy.deepcopy(layer)
    layer["a"].revive([1, 4], 2, seed=3)
    for new, old in (
        (layer["a"].prompts, before["a"].prompts),
        (layer["a"].router.T, before["a"].router.T),
    ):
        for j in (0, 2, 3):
            assert torch.equal(new[j], old[j])
        spread = old[2].std()
        for j in (1, 4):
            apart = (new[j] - old[2]) / spread
            # a hundredth: six standard deviations at most, and not nothing
            assert 0 < apart.abs().max() < 0.06
            assert 0.003 < apart.std() < 0.02
        assert not torch.equal(new[1], new[4])
    assert layer["a"].steps == 0
    assert layer["a"].prompts.requires_grad
    assert layer["a"].prompts.grad_fn is None


def test_revival_depends_on_its_seed_and_nothing_else():
    outcomes = []
    for seed in (3, 3, 4):
        layer = small_layer()
        torch.manual_seed(len(outcomes))
        layer["a"].revive([0], 2, seed=seed)
        outcomes.append(layer["a"].prompts.detach().clone())
    assert torch.equal(outcomes[0], outcomes[1])
    assert not torch.equal(outcomes[0], outcomes[2])


def test_a_revived_prompt_takes_about_half_of_the_busy_one_s_rows():
    """Of rows that all went to prompt 2: with equal columns but for noise, it is near a coin."""
    layer = small_layer()
    with torch.no_grad():
        layer["a"].router[:, 2] = 0
        layer["a"].router[0, 2] = 5.0
    means = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
    means[:, 0] = 3.0
    assert ((means @ layer["a"].router).argmax(1) == 2).float().mean() > 0.99
    shares = []
    for seed in range(8):
        again = copy.deepcopy(layer)
        again["a"].revive([0], 2, seed=seed)
        chosen = (means @ again["a"].router).argmax(1)
        assert ((chosen == 0) | (chosen == 2)).float().mean() > 0.99
        shares.append((chosen == 0).float().mean().item())
    assert sum(0.02 < share < 0.98 for share in shares) >= 6
