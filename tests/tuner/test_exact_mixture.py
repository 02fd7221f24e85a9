"""The exact form of posterior routing: the likelihood of the mixture, through all prompts."""

import pytest
import torch
from judged import labelled
from torch.testing import assert_close

from peft_smop import SMoPConfig
from peft_smop.tuner.noise import row_keys
from peft_smop.tuner.passes import label_counts, row_losses
from peft_smop.tuner.posterior import Posterior
from peft_smop.tuner.routing import RowState
from tiny import KINDS, THREE, adapted, without_dropout


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
