"""A causal LM must route in training on what it will see at inference: the context."""

import pytest
import torch
from peft import get_peft_model
from torch.testing import assert_close
from transformers import BertConfig, BertForTokenClassification

from peft_smop import SMoPConfig
from peft_smop.errors import ConfigError
from tiny import KINDS, VOCABULARY, adapted, batch, decided, row

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
DECODERS = [name for name, kind in KINDS.items() if kind.task_type == "CAUSAL_LM"]


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def with_answers(context, answer):
    ids = torch.cat([context["input_ids"], answer], dim=1)
    mask = torch.cat([context["attention_mask"], torch.ones_like(answer)], dim=1)
    labels = torch.cat([torch.full_like(context["input_ids"], -100), answer], dim=1)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def draw(seed, length=4):
    return torch.randint(3, VOCABULARY, (4, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("said", [True, False], ids=["task type", "no task type"])
@pytest.mark.parametrize("name", KINDS)
def test_the_context_is_the_default_for_causal_lms_alone(name, said):
    kind = KINDS[name]
    model = get_peft_model(kind.model(), SMoPConfig(task_type=kind.task_type if said else None))
    expected = "context" if kind.task_type == "CAUSAL_LM" else "input"
    assert model.smop_layer["default"].scope == expected
    assert model.peft_config["default"].router_scope is None  # good for another kind of model


@pytest.mark.parametrize("name", DECODERS)
def test_the_route_with_labels_is_the_route_of_the_context_alone(name):
    kind = KINDS[name]
    model, context = adapted(kind), batch(kind)
    model(**context)
    expected = model.last_routes
    for seed in range(3):
        model(**with_answers(context, draw(seed)))
        assert torch.equal(model.last_routes.indices, expected.indices)
        assert_close(model.last_routes.logits, expected.logits)


@pytest.mark.parametrize("name", DECODERS)
def test_in_training_as_well(name):
    kind = KINDS[name]
    model, context = adapted(kind, perturbation=False), batch(kind)
    model(**context)
    expected = model.last_routes
    model.train()(**with_answers(context, draw(0)))
    assert_close(model.last_routes.logits, expected.logits)


def test_with_the_perturbation_the_answer_changes_no_route_either():
    kind = KINDS["llama"]
    context = batch(kind)
    routes = []
    for seed in (0, 1):
        model = adapted(kind).train()
        model(**with_answers(context, draw(seed)))
        routes.append(model.last_routes)
    assert_close(routes[0].logits, routes[1].logits)


def test_answers_on_the_left_padded_side_of_other_rows_change_nothing():
    """Contexts and answers of different lengths in one batch, padded on the right."""
    kind = KINDS["llama"]
    model = adapted(kind)
    ids = torch.randint(3, VOCABULARY, (3, 9))
    labels, mask = torch.full_like(ids, -100), torch.ones_like(ids)
    for i, (start, end) in enumerate([(3, 9), (6, 8), (1, 4)]):
        labels[i, start:end] = ids[i, start:end]
        mask[i, end:] = 0
    model(input_ids=ids, attention_mask=mask, labels=labels)
    routes = model.last_routes
    for i, start in enumerate([3, 6, 1]):
        model(input_ids=ids[i : i + 1, :start])
        assert_close(model.last_routes.logits[0], routes.logits[i])


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_the_scope_input_would_read_the_answer_and_is_refused(training):
    kind = KINDS["llama"]
    model = adapted(kind, router_scope="input").train(training)
    with pytest.raises(ConfigError, match=r"lets the router read the answer.*leave router_scope"):
        model(**with_answers(batch(kind), draw(0)))


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("name", DECODERS)
def test_labels_that_leave_no_context_are_refused(name, training):
    """As in language modelling, where every token is an answer."""
    model, made = adapted(KINDS[name]).train(training), row(batch(KINDS[name]), 0)
    with pytest.raises(ConfigError, match=r"labels begin at the first token.*router_scope=16"):
        model(**made, labels=made["input_ids"])


@pytest.mark.parametrize("name", DECODERS)
def test_in_training_labels_must_reach_the_model(name):
    """Label smoothing and losses computed outside take them away."""
    model, made = adapted(KINDS[name]).train(), with_answers(batch(KINDS[name]), draw(0))
    del made["labels"]
    with pytest.raises(ConfigError, match=r"no labels reached the model.*router_scope=16"):
        model(**made)
    model.generate(**batch(KINDS[name]), max_new_tokens=1)  # which has no answer to hide


@pytest.mark.parametrize("labels", ["none", "all", "some"])
@pytest.mark.parametrize("name", DECODERS)
def test_a_number_of_first_tokens_is_read_whatever_follows(name, labels):
    kind = KINDS[name]
    model, context = adapted(kind, router_scope=3, perturbation=False), batch(kind)
    model(**context)
    expected = model.last_routes
    means = model.get_input_embeddings()(context["input_ids"])
    for i in range(4):
        read = means[i][context["attention_mask"][i].bool()][:3].mean(dim=0)
        assert_close(expected.logits[i], read @ model.smop_layer["default"].router, **CLOSE)
    made = with_answers(context, draw(0))
    given = {"none": None, "all": made["input_ids"], "some": made["labels"]}[labels]
    for training in (False, True):
        model.train(training)(**{**made, "labels": given})
        assert_close(model.last_routes.logits, expected.logits)


@pytest.mark.parametrize("routing", ["single", "stochastic", "uniform"])
def test_where_nothing_reads_the_row_any_labels_do(routing):
    model, made = adapted(KINDS["llama"], routing=routing).train(), row(batch(KINDS["llama"]), 0)
    assert model(**made, labels=made["input_ids"]).loss.isfinite()
    assert model(**made).logits.isfinite().all()


def test_the_labels_of_one_pass_are_forgotten_by_the_next():
    kind = KINDS["llama"]
    model, made = adapted(kind), with_answers(batch(kind), draw(0))
    labels = made.pop("labels")
    model(**made)
    expected = model.last_routes
    model(**made, labels=labels)
    model(**made)
    assert_close(model.last_routes.logits, expected.logits)


@pytest.mark.parametrize("fails", [False, True], ids=["finished pass", "failed pass"])
@pytest.mark.parametrize("name", ["llama", "opt"])
def test_labels_are_forgotten_when_the_pass_they_came_with_is_over(name, fails):
    """Also when the next call goes to the backbone itself, which is given no labels."""
    kind = KINDS[name]
    model, made = adapted(kind), with_answers(batch(kind), draw(0))
    labels = made.pop("labels")
    backbone = model.get_base_model().base_model
    expected = backbone(**made).last_hidden_state
    if fails:
        with pytest.raises(IndexError):
            model(**{**made, "input_ids": made["input_ids"] + VOCABULARY}, labels=labels)
    else:
        model(**made, labels=labels)
    assert_close(backbone(**made).last_hidden_state, expected)


def test_an_encoder_decoder_has_no_context_to_route_on():
    kind = KINDS["t5"]
    with pytest.raises(ConfigError, match="router_scope='context' is for causal LMs"):
        SMoPConfig(task_type=kind.task_type, router_scope="context")
    with pytest.raises(ConfigError, match="router_scope='context' is for causal LMs"):
        get_peft_model(kind.model(), SMoPConfig(router_scope="context"))


def test_the_labels_of_an_encoder_decoder_are_never_read_by_the_router():
    kind = KINDS["t5"]
    model, made = adapted(kind), batch(kind, tokens=3)  # labels of the input's shape
    made["attention_mask"].fill_(1)
    made["labels"][:, 0] = -100
    model(**made)
    with_labels = model.last_routes
    labels = made.pop("labels")
    model(**made, decoder_input_ids=labels.clamp(min=0))
    assert_close(model.last_routes.logits, with_labels.logits)


def test_token_labels_of_an_encoder_do_not_narrow_what_its_router_reads():
    bert = BertForTokenClassification(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=64,
        )
    )
    model = decided(get_peft_model(bert.eval(), SMoPConfig(task_type="TOKEN_CLS")))
    made = batch(KINDS["bert"])
    model(**made)
    expected = model.last_routes
    labels = torch.ones_like(made["input_ids"])
    labels[:, :2] = -100
    model(**made, labels=labels)
    assert_close(model.last_routes.logits, expected.logits)
