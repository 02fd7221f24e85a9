"""Every row of a batch may follow another adapter, in evaluation and in training."""

import pytest
import torch
from torch.testing import assert_close

from peft_smop import SMoPConfig
from peft_smop.errors import ConfigError
from tiny import KINDS, THREE, adapted, attended, batch, decided, row, without_dropout

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
NAMES = ["wide", "__base__", "one", "wide", "twin", "__base__", "one", "short"]


def zoo(kind, **options):
    """Adapters of several lengths, numbers of prompts and routings; two share a shape."""
    model = adapted(kind, adapter="wide", seed=0, num_prompts=4, num_virtual_tokens=5)
    for number, (name, more) in enumerate(
        {
            "twin": {"num_prompts": 4, "num_virtual_tokens": 5, "seed": 11},
            "short": {"num_prompts": 2, "num_virtual_tokens": 3},
            "one": {"routing": "single", "num_virtual_tokens": 7},
        }.items()
    ):
        model.add_adapter(name, SMoPConfig(task_type=kind.task_type, **more, **options))
        decided(model, name, seed=20 + number)
    return model


def head(model, kind, name):
    """The classifier of an adapter, as the bare model's own, or nothing."""
    if kind.task_type != "SEQ_CLS":
        return None
    wrapper = model.get_base_model().classifier
    return wrapper.original_module if name == "__base__" else wrapper.modules_to_save[name]


@pytest.mark.parametrize("name", KINDS)
def test_every_row_follows_its_own_adapter(name):
    kind = KINDS[name]
    model, made = zoo(kind), batch(kind, rows=8)
    with torch.no_grad():
        logits = model(**made, adapter_names=NAMES).logits
        routes = model.last_routes
        for i, adapter in enumerate(NAMES):
            own = row(made, i)
            if adapter == "__base__":
                with model.disable_adapter():
                    expected = model(**own).logits
                assert routes.indices[i].tolist() == [-1]
                assert routes.probabilities[i].isnan().all()
            else:
                model.set_adapter(adapter)
                expected = model(**own).logits
                assert torch.equal(model.last_routes.indices[0], routes.indices[i])
                assert_close(model.last_routes.probabilities[0], routes.probabilities[i], **CLOSE)
            assert_close(attended(kind, made, logits, i), attended(kind, own, expected, 0), **CLOSE)
    assert routes.adapters == tuple(NAMES)


@pytest.mark.parametrize("name", KINDS)
def test_rows_of_base_are_the_bare_model_s(name):
    kind = KINDS[name]
    model, made = zoo(kind), batch(kind, rows=8)
    with torch.no_grad():
        expected = kind.model()(**made).logits
        alone = model(**made, adapter_names=["__base__"] * 8).logits
        mixed = model(**made, adapter_names=NAMES).logits
    assert torch.equal(alone, expected)
    for i in (1, 5):
        assert_close(attended(kind, made, mixed, i), attended(kind, made, expected, i), **CLOSE)


def test_a_row_s_neighbours_change_nothing_but_the_last_bits():
    kind = KINDS["llama"]
    model, made = zoo(kind), batch(kind, rows=8)
    with torch.no_grad():
        one = model(**made, adapter_names=NAMES).logits[0]
        other = model(**made, adapter_names=["wide"] + ["short"] * 7).logits[0]
    assert_close(one, other, **CLOSE)


def test_without_an_attention_mask_rows_of_different_lengths_still_do_not_mix():
    for name in ("t5", "llama", "gpt2", "bert"):
        kind = KINDS[name]
        model, made = zoo(kind), batch(kind, rows=8)
        made["attention_mask"].fill_(1)
        with torch.no_grad():
            expected = model(**made, adapter_names=NAMES).logits
            del made["attention_mask"]
            assert_close(model(**made, adapter_names=NAMES).logits, expected, **CLOSE)


def test_the_order_of_the_rows_is_only_an_order():
    kind = KINDS["t5"]
    model, made = zoo(kind), batch(kind, rows=8)
    order = torch.tensor([5, 2, 7, 0, 3, 6, 1, 4])
    with torch.no_grad():
        expected = model(**made, adapter_names=NAMES).logits[order]
        shuffled = {key: value[order] for key, value in made.items()}
        found = model(**shuffled, adapter_names=[NAMES[i] for i in order]).logits
    assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("name", ["t5", "llama", "bert"])
def test_in_training_the_gradients_are_those_of_separate_passes(name):
    """With the perturbation on: a row draws by what it says, wherever it stands."""
    kind = KINDS[name]
    made = batch(kind, rows=8)
    if name == "llama":
        made["labels"] = made["input_ids"].index_fill(1, torch.arange(4), -100)

    def total(made, logits):
        weights = torch.linspace(-1, 1, logits.shape[-1])
        return sum((attended(kind, made, logits, i) * weights).sum() for i in range(len(logits)))

    model = zoo(kind).train()
    without_dropout(model)  # the backbone's, which draws for the whole batch at once
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model.set_requires_grad(["wide", "twin", "one", "short"])
    total(made, model(**made, adapter_names=NAMES).logits).backward()
    mixed = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    model.load_state_dict(state)  # the steps as well: the same noise again
    for adapter in ("wide", "twin", "one", "short"):
        rows = [i for i, n in enumerate(NAMES) if n == adapter]
        model.set_adapter(adapter)
        own = {key: value[rows] for key, value in made.items()}
        total(own, model(**own).logits).backward()
    separate = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    assert mixed.keys() == separate.keys()
    assert len([key for key in mixed if "smop" in key]) == 4 + 3  # four prompts, three routers
    for key, gradient in separate.items():
        assert gradient.abs().sum() > 0
        assert_close(mixed[key], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", THREE)
def test_in_training_only_adapters_in_the_batch_that_require_it_get_gradients(name):
    kind = KINDS[name]
    model, made = zoo(kind).train(), batch(kind)
    if name == "llama":
        made["labels"] = made["input_ids"].index_fill(1, torch.arange(4), -100)
    model.set_adapter("wide")  # twin is frozen, short and one are not in the batch
    model.set_requires_grad(["short"])
    model(**made, adapter_names=["wide", "twin", "__base__", "wide"]).logits.sum().backward()
    touched = {key for key, p in model.named_parameters() if p.grad is not None}
    moved = {key.split(".")[-2] for key in touched if "smop" in key}
    assert moved == {"wide"}
    assert all("wide" in key.split(".") for key in touched)


def test_each_adapter_counts_the_steps_of_the_optimizers_that_move_it():
    kind = KINDS["t5"]
    model, made = zoo(kind).train(), batch(kind)
    model.set_requires_grad(["wide", "twin", "short"])
    layer = model.smop_layer
    both = torch.optim.SGD([*layer["wide"].parameters(), *layer["twin"].parameters()], lr=0.1)
    routers = torch.optim.SGD([layer["wide"].router], lr=0.1)  # its prompts count, once
    other = torch.optim.AdamW([layer["wide"].prompts, *layer["short"].parameters()], lr=0.1)
    for optimizer in (both, routers, other):
        model(**made, adapter_names=["wide", "twin", "short", "wide"]).loss.backward()
        optimizer.step()
    steps = {name: int(model.smop_layer[name].steps) for name in model.smop_layer}
    assert steps == {"wide": 2, "twin": 1, "short": 1, "one": 0}


@pytest.mark.parametrize("name", ["bert", "roberta"])
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_the_classifier_of_a_row_is_its_own_adapter_s(name, training):
    kind = KINDS[name]
    model, made = zoo(kind), batch(kind, rows=8)
    wrapper = model.get_base_model().classifier
    constants = {"wide": 1.0, "twin": 2.0, "short": 3.0, "one": 4.0, "__base__": 5.0}
    with torch.no_grad():
        for adapter, constant in constants.items():
            for key, p in head(model, kind, adapter).named_parameters():
                p.zero_()
                if key in ("bias", "out_proj.bias"):
                    p.fill_(constant)
    assert set(wrapper.modules_to_save) == {"wide", "twin", "short", "one"}
    model.set_requires_grad(["wide", "twin", "one", "short"])
    logits = model.train(training)(**made, adapter_names=NAMES).logits
    expected = torch.tensor([constants[n] for n in NAMES])[:, None].expand(-1, 2)
    assert torch.equal(logits, expected)
    if training:
        logits.sum().backward()
        for adapter in ("wide", "twin", "short", "one"):
            own = dict(head(model, kind, adapter).named_parameters())
            bias = own.get("bias", own.get("out_proj.bias"))
            assert bias.grad.tolist() == [NAMES.count(adapter)] * 2
        assert all(p.grad is None for p in wrapper.original_module.parameters())


def test_router_scopes_may_be_mixed_in_one_batch():
    kind = KINDS["llama"]
    model = adapted(kind, adapter="context", router_scope="context")
    for name, scope in (("first", 2), ("context 2", "context")):
        model.add_adapter(name, SMoPConfig(task_type=kind.task_type, router_scope=scope))
        decided(model, name)
    made = batch(kind)
    labels = made["input_ids"].clone()
    labels[:, :4] = -100
    names = ["context", "first", "context 2", "first"]
    with torch.no_grad():
        logits = model(**made, labels=labels, adapter_names=names).logits
        routes = model.last_routes
        for i, name in enumerate(names):
            own = row({**made, "labels": labels}, i)
            own["labels"] = labels[i : i + 1][:, made["attention_mask"][i].bool()]
            model.set_adapter(name)
            expected = model(**own).logits
            assert_close(model.last_routes.logits[0], routes.logits[i], **CLOSE)
            assert_close(attended(kind, made, logits, i), expected, **CLOSE)
    # all three have the same weights, so rows that read less differ from rows that read all
    same = torch.equal(routes.logits[0], routes.logits[1])
    assert not same


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_an_unknown_name_is_refused(training):
    model, made = zoo(KINDS["t5"]).train(training), batch(KINDS["t5"])
    with pytest.raises(ConfigError, match=r"unknown adapters twinn; known: one, short, twin, wide"):
        model(**made, adapter_names=["wide", "twinn", "one", "wide"])


@pytest.mark.parametrize("count", [0, 3, 5, 8])
def test_a_wrong_number_of_names_is_refused(count):
    model, made = zoo(KINDS["t5"]), batch(KINDS["t5"])
    with pytest.raises(ConfigError, match=f"{count} entries for a batch of 4 rows"):
        model(**made, adapter_names=["wide"] * count)


def test_fewer_names_than_rows_are_refused_even_where_they_divide_the_rows():
    """In a forward nothing repeats rows; two names for four rows are a mistake."""
    model, made = zoo(KINDS["t5"]), batch(KINDS["t5"])
    with pytest.raises(ConfigError, match="2 entries for a batch of 4 rows"):
        model(**made, adapter_names=["wide", "one"])


@pytest.mark.parametrize("name", ["t5", "bert"])
def test_a_name_list_of_one_adapter_is_that_adapter(name):
    kind = KINDS[name]
    model, made = zoo(kind), batch(kind)
    with torch.no_grad():
        found = model(**made, adapter_names=["short"] * 4).logits
        model.set_adapter("short")
        assert torch.equal(found, model(**made).logits)


def test_the_active_adapter_is_as_before_after_a_mixed_batch_even_a_failed_one():
    kind = KINDS["bert"]
    model, made = zoo(kind), batch(kind)
    with torch.no_grad():
        expected = model(**made).logits
        model(**made, adapter_names=["short"] * 4)
        assert torch.equal(model(**made).logits, expected)
        with pytest.raises(ConfigError):
            model(**made, adapter_names=["short"] * 3)
        assert torch.equal(model(**made).logits, expected)
