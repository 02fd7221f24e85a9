"""The losses on the routing: their values by hand, and how they join a model's own loss."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from peft import get_peft_model
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from torch.testing import assert_close
from transformers import BertConfig, BertForSequenceClassification

import tiny
from peft_smop import SMoPConfig
from peft_smop.errors import ConfigError
from peft_smop.rows import calling
from peft_smop.tuner.call import PromptCall
from peft_smop.tuner.losses import Penalties, divergence, load_balancing_loss, router_z_loss
from peft_smop.tuner.noise import choice, fingerprints, normal, row_keys
from peft_smop.tuner.routing import Routing
from tiny import THREE, VOCABULARY, adapted, answer, batch, decided, row, without_dropout

LN2, LN3 = math.log(2.0), math.log(3.0)
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


def loud(kind):
    """With weights so large that answers depend on the prompt by more than rounding."""

    def build():
        model = kind.build()
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, torch.nn.Linear):
                    module.weight.mul_(12)
        return model

    return replace(kind, build=build)


KINDS = {name: loud(tiny.KINDS[name]) if name != "t5" else tiny.KINDS[name] for name in THREE}


# -- by hand -------------------------------------------------------------------------------------


def routing(logits, chosen):
    """A decision for one prompt each."""
    return Routing(torch.tensor(chosen)[:, None], torch.ones(len(chosen), 1), torch.tensor(logits))


def test_load_balancing_is_1_where_rows_and_probabilities_are_spread_evenly():
    assert_close(load_balancing_loss(routing([[0.0] * 4] * 4, [0, 1, 2, 3])).item(), 1.0)


@pytest.mark.parametrize("k", [2, 4, 7])
def test_load_balancing_is_k_where_one_prompt_takes_everything(k):
    collapsed = [[50.0] + [0.0] * (k - 1)] * 3
    assert_close(load_balancing_loss(routing(collapsed, [0, 0, 0])).item(), float(k))


def test_load_balancing_by_hand():
    """p = (3/4, 1/4), (3/4, 1/4), (1/3, 2/3): m = (11/18, 7/18) and f = (2/3, 1/3), so
    2 (2/3 * 11/18 + 1/3 * 7/18) = 29/27."""
    given = routing([[LN3, 0.0], [LN3, 0.0], [0.0, LN2]], [0, 0, 1])
    assert_close(load_balancing_loss(given).item(), 29 / 27)


def test_load_balancing_counts_a_row_s_first_choice():
    one = routing([[LN3, 0.0]], [0])
    two = Routing(torch.tensor([[0, 1]]), torch.tensor([[0.75, 0.25]]), torch.tensor([[LN3, 0.0]]))
    assert_close(load_balancing_loss(one).item(), 1.5)
    assert_close(load_balancing_loss(two).item(), 1.5)


def test_the_gradient_of_load_balancing_is_that_of_the_mean_probabilities_alone():
    """f is a count. For one row that chose prompt 1 of p = (3/4, 1/4): 2 p_1, whose gradient is
    2 p_1 (1 - p_1) and -2 p_1 p_2."""
    w = torch.tensor([[LN3, 0.0]], requires_grad=True)
    load_balancing_loss(Routing(torch.tensor([[0]]), torch.ones(1, 1), w)).backward()
    assert_close(w.grad, torch.tensor([[0.375, -0.375]]))


def test_z_loss_by_hand():
    """Σ exp = 4 and 2: the mean of (ln 4)² and (ln 2)² is 5/2 (ln 2)²."""
    given = routing([[LN3, 0.0], [0.0, 0.0]], [0, 0])
    assert_close(router_z_loss(given).item(), 2.5 * LN2**2)


def test_penalties_are_the_weighted_sum_of_both():
    given = routing([[LN3, 0.0], [0.0, 0.0]], [0, 0])
    # m = (5/8, 3/8) and f = (1, 0): 2 * 5/8
    assert_close(Penalties(0.5, 0.0)(given).item(), 0.625)
    assert_close(Penalties(0.0, 2.0)(given).item(), 5 * LN2**2)
    assert_close(Penalties(0.5, 2.0)(given).item(), 0.625 + 5 * LN2**2)
    assert not Penalties().is_active
    assert Penalties(0.5).is_active
    assert Penalties(z_loss=0.1).is_active


def test_divergence_by_hand():
    """p = (3/4, 1/4), q = (1/4, 3/4): both divergences are 1/2 ln 3, and so is their mean."""
    one, other = torch.tensor([[LN3, 0.0]]), torch.tensor([[0.0, LN3]])
    assert_close(divergence(one, other).item(), 0.5 * LN3)
    assert_close(divergence(one, one + 3).item(), 0.0)


def half_symmetric_kl(one, other):
    """½ (KL(p ∥ q) + KL(q ∥ p)) over the last axis, by PyTorch's function, in double precision."""
    p, q = log_softmax(one.double(), dim=-1), log_softmax(other.double(), dim=-1)
    there = kl_div(q, p, log_target=True, reduction="none").sum(-1)
    back = kl_div(p, q, log_target=True, reduction="none").sum(-1)
    return (there + back) / 2


def test_divergence_is_half_the_symmetric_kl_for_any_leading_axes():
    one, other = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    assert_close(divergence(one, other), half_symmetric_kl(one, other).float())
    # half precision is left before the logarithm
    assert divergence(one.bfloat16(), other.bfloat16()).dtype == torch.float32


# -- in models -----------------------------------------------------------------------------------


def labelled(name, rows=4):
    """A batch with labels, some of which do not count."""
    kind = KINDS[name]
    made = batch(kind, rows=rows)
    if name == "bert":
        return {**made, "labels": torch.arange(rows) % 2}
    if name == "t5":
        made["labels"][1, -1:] = -100
        return made
    labels = made["input_ids"].clone()
    labels[:, :4] = -100
    return {**made, "labels": labels.masked_fill(made["attention_mask"] == 0, -100)}


def own_loss(name, logits, labels):
    """The mean cross entropy of the labels that count."""
    if name == "llama":
        logits, labels = logits[:, :-1], labels[:, 1:]
    return cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))


def trained(name, **options):
    """A model in training mode, without the backbone's dropout."""
    return without_dropout(adapted(KINDS[name], **options)).train()


def keys_of(name, made, *, seed=0, step=0, draw=0, reads=False):
    """The rows' keys of randomness: what is read of them, and when."""
    read = made["attention_mask"].bool()
    if name == "llama" and reads:
        read = read & (torch.arange(read.shape[1]) < 4)
    content = fingerprints(made["input_ids"], read)
    return row_keys(torch.tensor([seed]), torch.tensor([step]), content, draw)


def raw_logits(name, model, made):
    """W x ∘ (1 + δ) of the rows of one adapter."""
    w = means_of(name, made) @ model.smop_layer["default"].router.detach()
    return w * (1 + normal(keys_of(name, made, reads=True), w.shape[1]))


def terms_of(model, made, **more):
    """What the routing of one training pass asks for, by adapter."""
    with model.terms_apart() as apart:
        model(**made, **more)
    return apart.terms


def means_of(name, made):
    """The mean embedding of what the router reads."""
    x = KINDS[name].model().get_input_embeddings()(made["input_ids"]).detach()
    read = made["attention_mask"].bool()
    if name == "llama":
        read = read & (torch.arange(read.shape[1]) < 4)
    return torch.stack([own[keep].mean(dim=0) for own, keep in zip(x, read, strict=True)])


@pytest.mark.parametrize("tuples", [False, True], ids=["by name", "as a tuple"])
@pytest.mark.parametrize("name", THREE)
def test_in_training_the_penalties_join_the_loss_and_in_evaluation_they_do_not(name, tuples):
    model = trained(name, load_balancing=0.5, z_loss=0.25)
    made = labelled(name)
    output = model(**made, return_dict=not tuples)
    loss, logits = (output[0], output[1]) if tuples else (output.loss, output.logits)
    w = raw_logits(name, model, made)
    p = w.softmax(dim=1)
    load = torch.bincount(p.argmax(dim=1), minlength=4) / 4
    balance = 4 * sum(f * m for f, m in zip(load.tolist(), p.mean(dim=0).tolist(), strict=True))
    z = sum(math.log(sum(map(math.exp, own))) ** 2 for own in w.tolist()) / 4
    expected = own_loss(name, logits, made["labels"]) + 0.5 * balance + 0.25 * z
    assert_close(loss, expected, **CLOSE)
    assert z > 0.1  # large enough to be missed
    output = model.eval()(**made)
    assert_close(output.loss, own_loss(name, output.logits, made["labels"]), **CLOSE)


@pytest.mark.parametrize("name", THREE)
def test_by_default_the_loss_is_the_model_s_own_to_the_last_bit(name):
    made = labelled(name)
    model = trained(name)
    weightless = trained(name, load_balancing=0.0, z_loss=0.0)
    loss = model(**made).loss
    assert torch.equal(weightless(**made).loss, loss)
    assert terms_of(model, made) == {}
    # and the penalties change the loss, but neither logits nor routes
    penalised = trained(name, load_balancing=1.0)
    output, plain = penalised(**made), trained(name)(**made)
    assert torch.equal(output.logits, plain.logits)
    assert torch.equal(plain.loss, loss)
    assert output.loss > loss


def test_gradients_of_the_penalties_reach_the_router_and_no_prompt():
    made = labelled("t5")
    model = trained("t5", load_balancing=1.0, z_loss=1.0)
    term = terms_of(model, made)["default"]
    router = model.smop_layer["default"].router
    prompts = model.smop_layer["default"].prompts
    found, none = torch.autograd.grad(term, (router, prompts), allow_unused=True)
    assert none is None
    # the same by the formula: γ and z of the noisy logits, differentiated in the router
    free = router.detach().clone().requires_grad_()
    means = means_of("t5", made)
    w = (means @ free) * (1 + normal(keys_of("t5", made), 4))
    p = w.softmax(dim=1)
    share = torch.nn.functional.one_hot(p.argmax(dim=1), 4).float().mean(dim=0)
    (4 * (share * p.mean(dim=0)).sum() + w.logsumexp(1).pow(2).mean()).backward()
    assert free.grad.abs().sum() > 0
    assert_close(found, free.grad, rtol=1e-3, atol=1e-6)


def test_the_loss_s_gradient_at_the_router_is_the_sum_of_both_parts():
    made = labelled("llama")
    gradients = []
    for options in ({}, {"z_loss": 2.0}):
        model = trained("llama", **options)
        output = model(**made)
        output.loss.backward()
        gradients.append(model.smop_layer["default"].router.grad.clone())
    model = trained("llama", z_loss=2.0)
    router = model.smop_layer["default"].router
    (alone,) = torch.autograd.grad(terms_of(model, made)["default"], router)
    assert_close(gradients[1], gradients[0] + alone, rtol=1e-4, atol=1e-6)


def test_training_on_the_penalty_alone_spreads_the_rows():
    """From a router that sends every row to one prompt."""
    model = trained("t5", load_balancing=1.0, perturbation=False)
    made = batch(KINDS["t5"], rows=16)
    router = model.smop_layer["default"].router
    with torch.no_grad():
        means = means_of("t5", made)
        router.mul_(0.1)
        router[:, 2] += 2 * torch.linalg.pinv(means).sum(dim=1)  # 2 for every row
    before = terms_of(model, made)["default"].item()
    assert model.last_routes.chosen.unique().tolist() == [2]
    optimizer = torch.optim.Adam([router], lr=0.02)
    for _ in range(15):
        optimizer.zero_grad()
        term = terms_of(model, made)["default"]
        term.backward()
        optimizer.step()
    assert term.item() < before
    assert model.last_routes.chosen.unique().numel() > 1


def zoo(name, *adapters, **first):
    """The adapter "default" with these options, and others beside it: (name, options)."""
    kind = KINDS[name]
    model = adapted(kind, **first)
    for number, (adapter, options) in enumerate(adapters):
        model.add_adapter(adapter, SMoPConfig(task_type=kind.task_type, **options))
        decided(model, adapter, seed=30 + number)
    model.set_requires_grad(["default", *(adapter for adapter, _ in adapters)])
    return without_dropout(model).train()


@pytest.mark.parametrize("name", THREE)
def test_in_a_mixed_batch_every_adapter_s_penalties_count_by_its_share_of_the_rows(name):
    """Two of five rows follow one adapter, one another of the same shape, one has no penalty."""
    made = labelled(name, rows=5)
    names = ["default", "b", "quiet", "default", "__base__"]
    model = zoo(
        name,
        ("b", {"z_loss": 0.5, "seed": 3}),
        ("quiet", {"seed": 4}),
        load_balancing=0.5,
        z_loss=2.0,
    )
    output = model(**made, adapter_names=names)
    terms = terms_of(model, made, adapter_names=names)
    assert set(terms) == {"default", "b"}
    # each adapter's term is the one that its rows alone give it
    for adapter, rows in (("default", [0, 3]), ("b", [1])):
        other = zoo(
            name,
            ("b", {"z_loss": 0.5, "seed": 3}),
            ("quiet", {"seed": 4}),
            load_balancing=0.5,
            z_loss=2.0,
        )
        other.set_adapter(adapter)
        alone = terms_of(other, {key: value[rows] for key, value in made.items()})
        assert_close(alone[adapter], terms[adapter], **CLOSE)
    expected = own_loss(name, output.logits, made["labels"])
    expected = expected + 2 / 5 * terms["default"] + 1 / 5 * terms["b"]
    assert_close(output.loss, expected, **CLOSE)


@pytest.mark.parametrize("options", [{"load_balancing": 1.0}, {"routing": "stochastic"}])
@pytest.mark.parametrize("name", THREE)
def test_a_batch_of_base_rows_adds_nothing_though_one_before_it_did(name, options):
    made = labelled(name)
    model = zoo(name, **options)
    model(**made).loss.backward()
    output = model(**made, adapter_names=["__base__"] * 4)
    assert_close(output.logits, KINDS[name].model()(**made).logits, **CLOSE)
    assert_close(output.loss, own_loss(name, output.logits, made["labels"]), **CLOSE)
    with model.disable_adapter():
        output = model(**made)
    assert_close(output.loss, own_loss(name, output.logits, made["labels"]), **CLOSE)


@pytest.mark.parametrize("name", THREE)
def test_a_model_can_be_copied_after_a_training_pass_with_penalties(name):
    made = labelled(name)
    for options in ({"load_balancing": 1.0, "z_loss": 1.0}, {"routing": "stochastic"}):
        model = trained(name, **options)
        model(**made)
        other = copy.deepcopy(model)
        assert torch.equal(other(**made).loss, model(**made).loss)
        other(**made).loss.backward()  # a graph of its own
        assert model.smop_layer["default"].prompts.grad is None


def test_without_labels_there_is_no_loss_to_join():
    model = trained("llama", load_balancing=1.0, router_scope=3)
    assert model(**batch(KINDS["llama"])).loss is None
    # but there is one for a caller who computes losses outside
    assert set(terms_of(model, batch(KINDS["llama"]))) == {"default"}


# -- consistency ---------------------------------------------------------------------------------


def drawn_logits(name, model, made, i, *, draw, adapter="default", seed=0):
    """Row i of the bare model behind the prompt that is drawn for it."""
    kind, bare = KINDS[name], KINDS[name].model()
    prompts = model.smop_layer[adapter].prompts.detach()
    key = keys_of(name, made, seed=seed, draw=draw)[i : i + 1]
    own = row(without_labels(name, made), i)
    if name == "t5":
        own["labels"] = made["labels"][i : i + 1]
    x = bare.get_input_embeddings()(own["input_ids"])
    x = torch.cat([prompts[choice(key, len(prompts))], x], dim=1)
    return answer(kind, bare, x, own).detach()[0]


def without_labels(name, made):
    return {key: value for key, value in made.items() if key != "labels"}


def row_divergence(name, made, i, one, other):
    """The mean over the positions of a row that have a label."""
    if name == "bert":
        return half_symmetric_kl(one, other).item()
    labels = made["labels"][i]
    if name == "llama":  # the logits at a position belong to the token after
        labels = labels[made["attention_mask"][i].bool()]
        one, other, labels = one[:-1], other[:-1], labels[1:]
    apart = half_symmetric_kl(one, other)
    return apart[labels != -100].mean().item()


@pytest.mark.parametrize("tuples", [False, True], ids=["by name", "as a tuple"])
@pytest.mark.parametrize("weight", [1.0, 0.3])
@pytest.mark.parametrize("name", THREE)
def test_consistency_is_half_the_symmetric_divergence_of_two_passes(name, weight, tuples):
    model = trained(name, routing="stochastic", consistency=weight)
    made = labelled(name)
    output = model(**made, return_dict=not tuples)
    loss, logits = (output[0], output[1]) if tuples else (output.loss, output.logits)
    apart = [
        row_divergence(
            name,
            made,
            i,
            *(drawn_logits(name, model, made, i, draw=draw) for draw in (0, 1)),
        )
        for i in range(4)
    ]
    assert sum(apart) > 1e-4  # some row was given two prompts
    expected = own_loss(name, logits, made["labels"]) + weight * sum(apart) / 4
    assert_close(loss, expected, **CLOSE)
    # what is returned is the first pass
    zeroth = trained(name, routing="stochastic", consistency=0.0)
    assert torch.equal(zeroth(**made).logits, logits)
    assert torch.equal(model.last_routes.indices[:, 0], choice(keys_of(name, made), 4))


@pytest.mark.parametrize("name", THREE)
def test_without_consistency_there_is_one_pass(name):
    made = labelled(name)
    for weight, passes in ((0.0, 1), (1.0, 2)):
        model = trained(name, routing="stochastic", consistency=weight)
        calls = []
        handle = model.get_base_model().register_forward_pre_hook(
            lambda *_, seen=calls: seen.append(1)
        )
        output = model(**made)
        handle.remove()
        assert len(calls) == passes
        assert model.smop_layer["default"].steps == 0  # only an optimizer's step counts
        if not weight:
            assert_close(output.loss, own_loss(name, output.logits, made["labels"]), **CLOSE)


@pytest.mark.parametrize("name", THREE)
def test_in_evaluation_there_is_one_pass_and_no_divergence(name):
    model, made = trained(name, routing="stochastic").eval(), labelled(name)
    output = model(**made)
    assert_close(output.loss, own_loss(name, output.logits, made["labels"]), **CLOSE)
    assert model.smop_layer["default"].steps == 0


@pytest.mark.parametrize("name", THREE)
def test_gradients_of_the_divergence_go_through_both_passes(name):
    """Two passes of a model that asks for no consistency, compared by another formula."""
    made = labelled(name)
    model = trained(name, routing="stochastic", consistency=1.0)
    model(**made).loss.backward()
    found = model.smop_layer["default"].prompts.grad
    plain = trained(name, routing="stochastic", consistency=0.0)
    one = plain(**made)
    with calling(PromptCall(plain.smop_layer, draw=1)):
        other = plain.get_base_model()(**made)
    terms = []
    for i in range(4):
        if name == "bert":
            terms.append(half_symmetric_kl(one.logits[i], other.logits[i]))
            continue
        labels, a, b = made["labels"][i], one.logits[i], other.logits[i]
        if name == "llama":
            labels, a, b = labels[1:], a[:-1], b[:-1]
        terms.append(half_symmetric_kl(a, b)[labels != -100].mean())
    (one.loss + torch.stack(terms).mean()).backward()
    assert_close(found, plain.smop_layer["default"].prompts.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", THREE)
def test_in_a_mixed_batch_only_stochastic_rows_are_compared(name):
    made = labelled(name)
    names = ["linear", "default", "__base__", "default"]
    model = zoo(name, ("linear", {"seed": 9}), routing="stochastic", consistency=0.5)
    output = model(**made, adapter_names=names)
    apart = 0.0
    for i in (1, 3):
        passes = (drawn_logits(name, model, made, i, draw=draw) for draw in (0, 1))
        apart += row_divergence(name, made, i, *passes)
    assert apart > 1e-4
    expected = own_loss(name, output.logits, made["labels"]) + 0.5 * apart / 4
    assert_close(output.loss, expected, **CLOSE)
    assert model.last_routes.adapters == tuple(names)


def test_a_neighbour_s_second_pass_changes_no_other_adapter_s_noise():
    made = labelled("t5")
    names = ["linear", "default", "one pass", "default"]
    others = (("linear", {"seed": 9}), ("one pass", {"routing": "stochastic", "consistency": 0.0}))
    model = zoo("t5", *others, routing="stochastic")
    model(**made, adapter_names=names)
    mixed = model.last_routes.logits[0]
    alone = zoo("t5", *others, routing="stochastic")
    alone.set_adapter("linear")
    alone(**{key: value[:1] for key, value in made.items()})
    assert_close(mixed, alone.last_routes.logits[0])


def test_consistency_of_a_causal_lm_is_that_of_the_next_token_whatever_the_task_type_says():
    """The labels are shifted by the model, not by the configuration."""
    made = labelled("llama")
    losses = []
    for task_type in ("CAUSAL_LM", None):
        config = SMoPConfig(task_type=task_type, routing="stochastic", router_scope="context")
        model = decided(get_peft_model(KINDS["llama"].model(), config)).train()
        losses.append(model(**made).loss)
    assert_close(losses[1], losses[0])


def test_consistency_needs_a_distribution_over_labels():
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
        intermediate_size=64, num_labels=1,
    )  # fmt: skip
    for weight, refused in ((1.0, True), (0.0, False)):
        smop = SMoPConfig(task_type="SEQ_CLS", routing="stochastic", consistency=weight)
        model = get_peft_model(BertForSequenceClassification(config), smop).train()
        made = {**batch(KINDS["bert"]), "labels": torch.rand(4)}
        if refused:
            with pytest.raises(ConfigError, match=r"this head does not give; set consistency=0"):
                model(**made)
        else:
            assert model(**made).loss.isfinite()


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_penalties_of_an_accumulated_step_weigh_what_they_weigh_in_one(parts):
    """As transformers' Trainer does it: the step's labels are counted once, losses are added up."""
    kind = KINDS["llama"]
    model = adapted(kind, perturbation=False, z_loss=1.0).train()
    made = batch(kind, rows=4)
    made = {key: value[:1].expand(4, -1) for key, value in made.items()}  # equal rows
    made["labels"] = made["input_ids"].index_fill(1, torch.arange(2), -100)
    total = torch.tensor(4 * (made["labels"].shape[1] - 2))
    loss = sum(
        model(**{k: v[i::parts] for k, v in made.items()}, num_items_in_batch=total).loss
        for i in range(parts)
    )
    assert_close(loss, model(**made).loss, rtol=1e-5, atol=1e-6)
