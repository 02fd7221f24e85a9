"""Posterior routing: its equations by hand, and the training that they make."""

import copy
import math

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch.testing import assert_close
from transformers import Trainer, TrainingArguments

from peft_smop import SMoPConfig
from peft_smop.errors import ConfigError
from peft_smop.tuner.deciding import router_logits
from peft_smop.tuner.noise import fingerprints, row_keys, uniform
from peft_smop.tuner.passes import label_counts, row_losses
from peft_smop.tuner.posterior import Posterior
from peft_smop.tuner.routing import RowState
from tiny import KINDS, THREE, adapted, batch, without_dropout

LN2, LN3 = math.log(2.0), math.log(3.0)
EVENLY = torch.tensor([0.5, 0.5])


def labelled(name, rows=6):
    made = batch(KINDS[name], rows=rows)
    if name == "bert":
        made["labels"] = torch.arange(rows) % 2
    if name == "llama":
        made["labels"] = made["input_ids"].index_fill(1, torch.arange(4), -100)
        made["attention_mask"][:, 4:] = 1
    return made


def trained(name, judged=1.0, candidates=4, **options):
    options |= {"judged": judged, "candidates": candidates}
    return without_dropout(
        adapted(KINDS[name], routing="posterior", **{"num_prompts": 4, **options})
    ).train()


# -- equations -----------------------------------------------------------------------------------


def test_the_posterior_is_the_prior_times_the_likelihood_by_bayes_rule():
    """p = (3/4, 1/4), likelihoods (1/6, 1/2): q = (3/24, 3/24) / (6/24) = (1/2, 1/2)."""
    losses = torch.tensor([[math.log(6.0), LN2], [LN3, LN3]])
    logits = torch.tensor([[LN3, 0.0], [LN3, 0.0]])
    q = Posterior(balance=0.0).posterior(losses, torch.ones(2), logits, EVENLY)
    assert_close(q, torch.tensor([[0.5, 0.5], [0.75, 0.25]]))


def test_an_answer_is_believed_no_more_than_a_few_tokens():
    """Losses of 40 tokens count as 4 of them do: a tenth."""
    losses, zeros = torch.tensor([[10 * LN3, 0.0]]), torch.zeros(1, 2)
    q = Posterior(balance=0.0).posterior(losses, torch.tensor([40.0]), zeros, EVENLY)
    assert_close(q, torch.tensor([[0.25, 0.75]]))
    q = Posterior(balance=0.0).posterior(losses / 10, torch.tensor([3.0]), zeros, EVENLY)
    assert_close(q, torch.tensor([[0.25, 0.75]]))


def test_balance_moves_a_posterior_toward_equal_use():
    """Fully balanced over enough rows, each prompt has half of them, the likelier ones."""
    losses = torch.stack([torch.linspace(0, 4, 400), torch.full((400,), 3.0)], dim=1)
    zeros = torch.zeros(400, 2)
    use = []
    for balance in (0.0, 0.2, 1.0):
        q = Posterior(balance=balance).posterior(losses, torch.ones(400), zeros, EVENLY)
        assert_close(q.sum(dim=1), torch.ones(400))
        assert (q[:-1, 0] >= q[1:, 0] - 1e-6).all()  # the order of the rows stays
        use.append(q[:, 0].mean().item())
    assert use[0] > 0.65 > use[1] > 0.51
    assert abs(use[2] - 0.5) < 0.01


def test_one_round_of_balance_by_hand():
    """Used (0.9, 0.1): log q is lowered by 1/2 log 2·(0.9, 0.1), so q = (3, 1) / 4."""
    logits = torch.tensor([[math.log(9.0), 0.0]]).repeat(128, 1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("peft_smop.tuner.posterior.BALANCE_STEPS", 1)
        q = Posterior(balance=0.5).posterior(torch.zeros(128, 2), torch.ones(128), logits, EVENLY)
    assert_close(q[0], torch.tensor([0.75, 0.25]))


def test_a_posterior_divides_the_share_of_the_prompts_that_a_row_was_put_under():
    """Priors (1/2, 1/4, 1/4), likelihoods (1/6, 1/2, unknown): (1/12, 1/8) of 3/4, and 1/4."""
    losses = torch.tensor([[math.log(6.0), LN2, math.nan]])
    logits = torch.tensor([[LN2, 0.0, 0.0]])
    thirds = torch.full((3,), 1 / 3)
    q = Posterior(balance=0.0).posterior(losses, torch.ones(1), logits, thirds)
    assert_close(q, torch.tensor([[0.3, 0.45, 0.25]]))


def test_rows_are_put_under_the_router_s_best_prompts_and_others_at_random():
    n = 6_000
    logits = torch.tensor([0.0, 3.0, -1.0, 2.0, 1.0]).repeat(n, 1)
    keys = row_keys(torch.zeros(1).long(), torch.zeros(1).long(), torch.arange(n))
    tried = Posterior(candidates=3).tried(logits, keys)
    assert (tried[:, :2] == torch.tensor([1, 3])).all()
    shares = torch.bincount(tried[:, 2], minlength=5) / n
    assert_close(shares, torch.tensor([1, 0, 1, 0, 1]) / 3, rtol=0, atol=0.02)
    every = Posterior(candidates=8).tried(logits[:3], keys[:3])
    assert every.sort(dim=1).values.tolist() == [[0, 1, 2, 3, 4]] * 3
    assert Posterior().tried(torch.zeros(2, 1), keys[:2]).tolist() == [[0], [0]]


def test_few_rows_are_balanced_with_the_steps_before_them():
    """One row says little of how much each prompt is used; 128 rows for two prompts say it all."""
    zeros = torch.zeros(1, 2)
    strategy = Posterior(balance=0.5)
    before = torch.tensor([0.9, 0.1])
    q = strategy.posterior(zeros, torch.ones(1), zeros, before)
    assert q[0, 1] > 0.9  # the first prompt has had its share
    many = torch.zeros(128, 2)
    assert_close(strategy.posterior(many, torch.ones(128), many, before), many + 0.5)


def test_the_router_s_loss_is_the_cross_entropy_with_the_posterior():
    logits = torch.tensor([[LN3, 0.0], [0.0, 0.0]], requires_grad=True)
    q = torch.tensor([[0.5, 0.5], [math.nan, math.nan]])
    routing = Posterior(judged=0.5)(logits, RowState(torch.tensor([1, 2]), posterior=q))
    expected = -(0.5 * math.log(0.75) + 0.5 * math.log(0.25)) / 0.5
    assert_close(routing.loss, torch.tensor([expected, 0.0]))
    routing.loss.sum().backward()
    # d/dw of the cross-entropy is p - q
    assert_close(logits.grad, torch.tensor([[0.25, -0.25], [0.0, 0.0]]) / 0.5)
    assert routing.weights.tolist() == [[1.0], [1.0]]


def test_a_prompt_is_drawn_from_the_posterior_and_unjudged_rows_keep_the_router_s_choice():
    n = 20_000
    q = torch.tensor([0.5, 0.2, 0.3]).repeat(n, 1)
    q[::2] = math.nan
    logits = torch.tensor([0.0, 2.0, 1.0]).repeat(n, 1)
    keys = row_keys(torch.zeros(1).long(), torch.zeros(1).long(), torch.arange(n))
    indices = Posterior()(logits, RowState(keys, posterior=q)).indices[:, 0]
    assert (indices[::2] == 1).all()
    shares = torch.bincount(indices[1::2], minlength=3) / (n / 2)
    assert_close(shares, torch.tensor([0.5, 0.2, 0.3]), rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"judged": 0.0}, "judged=0.0 must be above 0"),
        ({"judged": 1.5}, "judged=1.5"),
        ({"candidates": 1}, "candidates=1 must be at least 2"),
        ({"every": 0}, "every=0 must be at least 1 step"),
        ({"exact": True, "judged": 0.5}, "judged=0.5 contradicts exact=True"),
        ({"balance": -0.1}, "balance=-0.1 must be from 0 to 1"),
        ({"evidence": 0.0}, "evidence=0.0 must be above 0"),
        ({"perturbation": True}, "contradicts routing='posterior'"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        SMoPConfig(routing="posterior", **options)


# -- in models -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", THREE)
def test_prompt_losses_are_the_losses_of_forced_prompts(name):
    model, made = adapted(KINDS[name]), labelled(name)
    found = model.prompt_losses(**made, chunk=5)
    for j in range(4):
        for i in range(6):
            own = {k: v[i : i + 1] for k, v in made.items()}
            with model.forced_prompt(j), torch.no_grad():
                loss = model(**own).loss
            counted = {"t5": 3, "llama": 3, "bert": 1}[name]
            assert_close(found[i, j], loss * counted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", THREE)
def test_a_training_pass_adds_the_cross_entropy_and_trains_the_drawn_prompt(name):
    model, made = trained(name), labelled(name)
    losses = model.prompt_losses(**made)
    model.train()
    adapter = model.smop_layer["default"]
    with model.terms_apart() as apart:
        output = model(**made)
    routes = model.last_routes
    counted = {"t5": 3.0, "llama": 3.0, "bert": 1.0}[name]
    q = adapter.strategy.posterior(
        losses, torch.full((6,), counted), routes.logits, torch.full((4,), 0.25)
    )
    expected = -(q * routes.logits.log_softmax(dim=1)).sum(dim=1).mean()
    assert_close(apart.terms["default"], expected, rtol=1e-4, atol=1e-5)
    read = made["attention_mask"].bool()
    if name == "llama":
        read = read & (torch.arange(7) < 4)
    keys = row_keys(adapter.seed[None], adapter.steps[None], fingerprints(made["input_ids"], read))
    drawn = (uniform(keys, 1) > q.cumsum(dim=1)).sum(dim=1)
    assert torch.equal(routes.chosen, drawn)
    joined = model(**made).loss
    assert_close(joined, output.loss + expected, rtol=1e-4, atol=1e-5)
    joined.backward()
    assert adapter.router.grad.abs().sum() > 0
    touched = adapter.prompts.grad.abs().sum(dim=(1, 2)) > 0
    assert set(touched.nonzero().flatten().tolist()) == set(drawn.tolist())


@pytest.mark.parametrize("name", THREE)
@pytest.mark.parametrize("embedded", [False, True])
def test_what_the_router_says_is_known_without_a_pass(name, embedded):
    model, made = trained(name), labelled(name)
    if embedded:
        made["inputs_embeds"] = model.get_input_embeddings()(made.pop("input_ids")).detach()
        made["inputs_embeds"][made["attention_mask"] == 0] = math.nan
    model(**made)
    found = router_logits(model.smop_layer, "default", made)
    assert torch.equal(found, model.last_routes.logits)


def test_judging_may_leave_steps_out():
    model, made = trained("bert", every=3), labelled("bert")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    judged = []
    for _ in range(6):
        model(**made).loss.backward()
        judged.append(model.smop_layer["default"].router.grad.abs().sum() > 0)
        optimizer.step()
        optimizer.zero_grad()
    assert judged == [True, False, False, True, False, False]


@pytest.mark.parametrize("name", THREE)
def test_in_evaluation_it_is_one_pass_and_the_best_prompt_unscaled(name):
    model, made = adapted(KINDS[name], routing="posterior", num_prompts=4), labelled(name)
    passes = []
    model.get_base_model().register_forward_hook(lambda *a: passes.append(1))
    model(**made)
    assert len(passes) == 1
    routes = model.last_routes
    assert torch.equal(routes.indices[:, 0], routes.logits.argmax(dim=1))
    assert routes.probabilities.eq(1).all()


@pytest.mark.parametrize("name", THREE)
def test_with_one_prompt_it_is_prompt_tuning_to_the_last_bit(name):
    made = labelled(name)
    one = without_dropout(adapted(KINDS[name], routing="posterior", num_prompts=1)).train()
    plain = without_dropout(adapted(KINDS[name], routing="single")).train()
    with torch.no_grad():
        plain.smop_layer["default"].prompts.copy_(one.smop_layer["default"].prompts)
    found, expected = one(**made), plain(**made)
    assert torch.equal(found.logits, expected.logits)
    assert_close(found.loss, expected.loss, rtol=0, atol=1e-7)  # a cross-entropy of 0
    found.loss.backward()
    expected.loss.backward()
    assert torch.equal(
        one.smop_layer["default"].prompts.grad, plain.smop_layer["default"].prompts.grad
    )


@pytest.mark.parametrize("name", THREE)
def test_in_a_mixed_batch_every_adapter_is_judged_by_its_own_rows(name):
    made = labelled(name)

    def zoo():
        model = adapted(KINDS[name], routing="posterior", num_prompts=4, judged=1.0)
        model.add_adapter("plain", SMoPConfig(task_type=KINDS[name].task_type))
        model.set_requires_grad(["default", "plain"])
        return without_dropout(model).train()

    names = ["default", "plain", "__base__", "default", "default", "plain"]
    own = {k: v[[0, 3, 4]] for k, v in made.items()}
    mixed, alone = zoo(), zoo()
    with mixed.terms_apart() as found:
        mixed(**made, adapter_names=names)
    routes = mixed.last_routes
    with alone.terms_apart() as expected:
        alone(**own)
    assert set(found.terms) == {"default"}
    assert_close(found.terms["default"], expected.terms["default"], rtol=1e-4, atol=1e-5)
    assert torch.equal(routes.chosen[[0, 3, 4]], alone.last_routes.chosen)


@pytest.mark.parametrize("judged", [0.2, 1.0])
def test_adapters_of_different_sizes_share_a_part_in_which_not_all_are_judged(judged):
    model = adapted(KINDS["t5"], routing="posterior", num_prompts=2, judged=judged)
    config = SMoPConfig(task_type="SEQ_2_SEQ_LM", routing="posterior", num_prompts=6, judged=judged)
    model.add_adapter("large", config)
    model.set_requires_grad(["default", "large"])
    without_dropout(model).train()
    made = labelled("t5")
    names = ["default", "large"] * 3
    parts = [{k: v[i : i + 2] for k, v in made.items()} for i in (0, 2, 4)]
    own = [names[:2]] * 3
    for part, posterior in zip(parts, model.posteriors(parts, own), strict=True):
        if posterior is None:
            continue
        assert posterior.shape == (2, 6)
        with model.judged(posterior):
            model(**part, adapter_names=["default", "large"]).loss.backward()


@pytest.mark.parametrize("name", THREE)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda made: {"attention_mask": made["attention_mask"][:, :-1]}, "has the shape"),
        (lambda made: {"attention_mask": made["attention_mask"][:, None]}, "two-dimensional"),
        (lambda made: {"labels": made["labels"][:-1]}, "labels have 5 rows for 6"),
        (lambda made: {"adapter_names": ["default"] * 7}, "7 entries"),
        (lambda made: {"input_ids": None}, "give input_ids or inputs_embeds"),
    ],
)
def test_what_the_pass_would_refuse_is_refused_before_rows_are_judged(name, change, message):
    model, made = trained(name), labelled(name)
    with pytest.raises(ConfigError, match=message):
        model(**{**made, **change(made)})


def test_without_labels_it_is_refused_but_generation_is_not():
    model = trained("t5")
    made = batch(KINDS["t5"])
    labels = made.pop("labels")
    with pytest.raises(ConfigError, match="routing='posterior' learns from the labels"):
        model(**made, decoder_input_ids=labels)
    model.generate(**made, max_new_tokens=2)


def test_a_share_of_the_rows_is_judged_by_what_they_say():
    model, made = trained("bert", judged=0.5), labelled("bert")
    passes = []
    model.get_base_model().register_forward_pre_hook(
        lambda m, a, k: passes.append(len(k["input_ids"])), with_kwargs=True
    )
    (one,) = model.posteriors([made], [None])
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    (other,) = model.posteriors([{k: v[order] for k, v in made.items()}], [None])
    assert torch.equal(one[order].isnan(), other.isnan())
    judged = (~one.isnan().any(dim=1)).sum().item()
    assert 0 < judged < 6
    assert sum(passes) == 4 * judged * 2  # both times
    # however the step is divided
    parts = [{k: v[i : i + 2] for k, v in made.items()} for i in (0, 2, 4)]
    divided = model.posteriors(parts, [None] * 3)
    rows = [torch.full((2, 4), math.nan) if part is None else part for part in divided]
    assert torch.equal(torch.cat(rows).isnan(), one.isnan())


def test_a_row_without_a_finite_loss_is_left_out_and_harms_no_other():
    strategy, losses = Posterior(), torch.rand(5, 4)
    zeros, thirds = torch.zeros(5, 4), torch.full((4,), 0.25)
    broken = losses.clone()
    broken[2] = math.inf
    broken[3, 1] = math.inf
    q = strategy.posterior(broken, torch.ones(5), zeros, thirds)
    assert q[2].isnan().all()
    assert q[[0, 1, 3, 4]].isfinite().all()
    assert q[3, 1] == 0
    kept = [0, 1, 3, 4]
    alone = strategy.posterior(broken[kept], torch.ones(4), zeros[kept], thirds)
    assert_close(q[kept], alone)
    model = trained("bert")
    adapter = model.smop_layer["default"]
    adapter.note_usage(q)
    adapter.note_usage(torch.full((1, 4), math.nan))
    adapter.end_usage()
    assert adapter.usage.isfinite().all()


def test_a_step_whose_losses_were_not_numbers_leaves_the_router_able_to_learn():
    model, made = trained("t5"), labelled("t5")
    adapter = model.smop_layer["default"]
    head = model.get_base_model().lm_head
    poison = head.register_forward_hook(lambda m, a, out: out * math.nan)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    model(**made).loss.backward()
    poison.remove()
    optimizer.zero_grad()
    for _ in range(2):
        model(**made).loss.backward()
        assert adapter.router.grad.abs().sum() > 0
        optimizer.step()
        optimizer.zero_grad()
        assert adapter.usage.isfinite().all()


def test_a_model_cast_to_half_precision_trains_on():
    model, made = trained("t5"), labelled("t5")
    model.to(torch.bfloat16)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(**made).loss.backward()
    optimizer.step()
    assert model.smop_layer["default"].usage.isfinite().all()


def test_usage_counts_for_the_adapter_whose_rows_passed_though_another_shares_its_tensors():
    model, made = trained("t5"), labelled("t5")
    adapter = model.smop_layer["default"]
    tensors = [*adapter.parameters(), *adapter.buffers()]
    twins = [copy.deepcopy(adapter, {id(t): t for t in tensors}) for _ in range(4)]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = adapter.usage.clone()
    model(**made).loss.backward()
    optimizer.step()
    assert adapter.steps == 1
    assert not torch.equal(adapter.usage, before)
    assert twins[0].usage is adapter.usage


@pytest.mark.parametrize("name", THREE)
def test_ten_lines_of_plain_peft_train_it(name, tmp_path):
    kind = KINDS[name]
    config = SMoPConfig(task_type=kind.task_type, routing="posterior", num_prompts=4)
    model = get_peft_model(kind.model(), config)
    made = labelled(name, rows=8)
    rows = [{key: value[i] for key, value in made.items()} for i in range(8)]
    arguments = TrainingArguments(
        tmp_path, max_steps=3, per_device_train_batch_size=4, learning_rate=0.1, use_cpu=True,
        report_to="none", disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    adapter = model.smop_layer["default"]
    assert adapter.steps == 3
    assert not torch.equal(adapter.usage, torch.full((4,), 0.25))


@pytest.mark.parametrize("name", THREE)
def test_the_exact_form_has_the_gradient_of_the_mixture_s_likelihood(name):
    """Against autograd through a pass for every prompt, all prompts and the router at once."""
    made = labelled(name)
    made["labels"][0, ...] = made["labels"][1, ...]
    if name != "bert":
        made["labels"][0, -1] = -100  # rows count by their tokens
    model = without_dropout(
        adapted(KINDS[name], routing="posterior", num_prompts=4, exact=True)
    ).train()
    adapter = model.smop_layer["default"]
    with torch.no_grad():
        adapter.router.mul_(10)  # so that the priors differ
    found = model(**made).loss
    found.backward()
    grads = adapter.prompts.grad.clone(), adapter.router.grad.clone()
    model.zero_grad()
    logits, under = router_logits_with_gradient(model, made), []
    for j in range(4):
        with model.terms_apart(), model.forced_prompt(j):
            output = model(**made)
        under.append(row_losses(output, made["labels"], predicts_next=name == "llama"))
    joint = logits.softmax(dim=1) * (-torch.stack(under, dim=1)).exp()
    count = label_counts(made["labels"], predicts_next=name == "llama").sum()
    expected = -joint.sum(dim=1).log().sum() / count
    expected.backward()
    assert_close(found, expected)
    assert_close(grads[0], adapter.prompts.grad)
    assert_close(grads[1], adapter.router.grad)
    assert (grads[0].abs().sum(dim=(1, 2)) > 0).all()


def router_logits_with_gradient(model, made):
    with model.terms_apart():
        model(**made)
    adapter, (_, (decision,)) = model.smop_layer["default"], model.smop_layer.last
    mask = made["attention_mask"].float()
    if "labels" in made and made["labels"].shape == mask.shape and made["labels"][1, 0] == -100:
        mask = mask * (torch.arange(mask.shape[1]) < 4)
    x = model.get_input_embeddings()(made["input_ids"]).detach()
    mean = (x * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
    logits = mean @ adapter.router_matrix()
    assert_close(logits, decision.routing.logits, rtol=1e-4, atol=1e-5)
    return logits


def test_the_cheap_form_draws_the_exact_gradient():
    """Σ_j q_j ∇(L_j - log p_j), q by Bayes' rule, is ∇ -log Σ_j p_j exp(-L_j)."""
    logits = torch.tensor([[0.3, -0.2, 0.5]], requires_grad=True)
    losses = torch.tensor([[1.0, 0.2, 2.0]], requires_grad=True)
    (-(logits.log_softmax(1) - losses).logsumexp(1)).sum().backward()
    exact = logits.grad.clone(), losses.grad.clone()
    logits.grad = None
    strategy = Posterior(balance=0.0, judged=1.0)
    q = strategy.posterior(losses.detach(), torch.ones(1), logits.detach(), torch.ones(3) / 3)
    keys = row_keys(torch.zeros(1).long(), torch.zeros(1).long(), torch.arange(1))
    strategy(logits, RowState(keys, posterior=q)).loss.sum().backward()
    assert_close(logits.grad, exact[0])  # of the router, by the cross-entropy
    assert_close(q, exact[1])  # of a prompt, as often as it is drawn


def test_the_exact_form_leaves_other_adapters_rows_as_they_are():
    made = labelled("t5")

    def zoo():
        model = adapted(KINDS["t5"], routing="posterior", exact=True)
        model.add_adapter("plain", SMoPConfig(task_type="SEQ_2_SEQ_LM", perturbation=False))
        model.set_requires_grad(["default", "plain"])
        return without_dropout(model).train()

    names = ["default", "plain", "__base__", "default", "default", "plain"]
    mixed = zoo()
    loss = mixed(**made, adapter_names=names).loss
    alone = zoo()
    parts = [
        alone(**{k: v[[i]] for k, v in made.items()}, adapter_names=[name]).loss
        for i, name in enumerate(names)
    ]
    assert_close(loss, torch.stack(parts).mean())


def test_the_exact_form_counts_labels_and_asked_routes_as_the_model_does():
    made = labelled("t5")
    made["labels"][0] = -100
    one = without_dropout(adapted(KINDS["t5"], routing="posterior", num_prompts=1, exact=True))
    plain = without_dropout(adapted(KINDS["t5"], routing="single"))
    with torch.no_grad():
        plain.smop_layer["default"].prompts.copy_(one.smop_layer["default"].prompts)
    assert_close(one.train()(**made).loss, plain.train()(**made).loss)
    model = without_dropout(adapted(KINDS["t5"], routing="posterior", exact=True)).train()
    losses = []
    for j in (0, 1):
        with model.forced_prompt(j):
            losses.append(model(**made).loss)
    under = model.prompt_losses(**made)
    count = (made["labels"] != -100).sum()
    assert_close(torch.stack(losses), under[:, :2].sum(dim=0) / count)


def test_the_exact_form_compares_prompts_under_the_same_dropout():
    model, made = (
        adapted(KINDS["t5"], routing="posterior", num_prompts=4, exact=True),
        labelled("t5"),
    )
    adapter = model.smop_layer["default"]
    with torch.no_grad():
        adapter.prompts.copy_(adapter.prompts[:1].expand_as(adapter.prompts))
    model.train()
    model(**made).loss.backward()
    assert adapter.router.grad.abs().max() < 1e-6 < adapter.prompts.grad.abs().max()


def test_killed_and_resumed_it_ends_as_if_never_killed(tmp_path):
    kind, made = KINDS["t5"], labelled("t5")

    def train(model, steps):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        for _ in range(steps):
            optimizer.zero_grad()
            model(**made).loss.backward()
            optimizer.step()
        return model

    straight = train(trained("t5", judged=0.5), 4)
    train(trained("t5", judged=0.5), 2).save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(kind.model(), tmp_path, is_trainable=True)
    resumed = train(without_dropout(again).train(), 2)
    others = straight.state_dict()
    for key, value in resumed.state_dict().items():
        if "smop" in key:
            assert torch.equal(value, others[key]), key


@pytest.mark.parametrize("parts", [1, 3])
def test_accumulated_and_recomputed_passes_see_the_same_usage(parts):
    """It counts from the next step on; what a pass notes changes no other pass of its step."""
    model, made = trained("bert"), labelled("bert")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = model.smop_layer["default"].usage.clone()
    for i in range(parts):
        model(**{k: v[i::parts] for k, v in made.items()}).loss.backward()
        assert torch.equal(model.smop_layer["default"].usage, before)
    optimizer.step()
    assert not torch.equal(model.smop_layer["default"].usage, before)
