"""Several adapters: one for all rows, one for every row, none, and back to the bare model."""

import copy
import pickle

import pytest
import torch
from bottlenecks import adapted, config, trained
from peft import get_peft_model
from torch.testing import assert_close

from peft_smop.bottleneck.layer import BottleneckLayer
from peft_smop.errors import ConfigError
from tiny import KINDS, THREE, batch, without_dropout

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
NAMES = ["wide", "__base__", "low", "wide", "smooth", "__base__", "low", "smooth"]


def zoo(kind):
    """Adapters of other widths, placements and activations."""
    model = adapted(kind, adapter="wide", bottleneck_size=8)
    for seed, (name, options) in enumerate(
        {"low": {"placement": "pfeiffer"}, "smooth": {"activation": "tanh"}}.items()
    ):
        model.add_adapter(name, config(kind, **options))
        trained(model, name, seed=seed)
    return model


def rows_of(made, rows):
    return {key: value[rows] for key, value in made.items()}


def logits_of(model, made, adapter):
    """All rows by one adapter."""
    if adapter == "__base__":
        with model.disable_adapter():
            return model(**made).logits
    model.set_adapter(adapter)
    return model(**made).logits


@pytest.mark.parametrize("name", KINDS)
def test_adapters_are_switched_by_name_and_off(name):
    kind, made = KINDS[name], batch(KINDS[name])
    model = zoo(kind)
    with torch.no_grad():
        bare = kind.model()(**made).logits
        first = model(**made).logits
        low, again = logits_of(model, made, "low"), logits_of(model, made, "wide")
        assert torch.equal(again, first)
        assert not torch.equal(low, first)
        assert torch.equal(logits_of(model, made, "__base__"), bare)
        assert torch.equal(model(**made).logits, first)


def test_another_adapter_is_the_same_as_that_adapter_alone():
    kind, made = KINDS["t5"], batch(KINDS["t5"])
    alone = trained(get_peft_model(kind.model(), config(kind, placement="pfeiffer")), seed=0)
    with torch.no_grad():
        assert torch.equal(logits_of(zoo(kind), made, "low"), alone(**made).logits)


def test_only_the_active_adapter_is_trainable():
    model = zoo(KINDS["llama"])

    def trainable():
        return {key.split(".")[-2] for key, p in model.named_parameters() if p.requires_grad}

    assert trainable() == {"wide"}
    model.set_adapter("low")
    assert trainable() == {"low"}


@pytest.mark.parametrize("name", THREE)
def test_a_deleted_adapter_is_gone_and_another_of_any_placement_takes_over(name):
    kind, made = KINDS[name], batch(KINDS[name])
    model = zoo(kind)
    with torch.no_grad():
        expected = logits_of(model, made, "low")
        model.set_adapter("wide")
        model.delete_adapter("smooth")
        with pytest.warns(UserWarning, match="Setting active adapter to low"):
            model.delete_adapter("wide")
        assert model.active_adapters == ["low"]
        assert not [key for key, _ in model.named_parameters() if ".wide." in key]
        assert torch.equal(model(**made).logits, expected)


@pytest.mark.parametrize("name", KINDS)
def test_unloading_gives_the_bare_model_back(name):
    kind, made = KINDS[name], batch(KINDS[name])
    bare, model = kind.model(), zoo(kind)
    with torch.no_grad():
        for key, p in model.named_parameters():
            if ".modules_to_save." in key:
                p.add_(1)
    unloaded = model.unload()
    assert type(unloaded) is type(bare)
    assert unloaded.state_dict().keys() == bare.state_dict().keys()
    assert not any(isinstance(module, BottleneckLayer) for module in unloaded.modules())
    assert not hasattr(unloaded, "peft_config")
    with torch.no_grad():
        assert torch.equal(unloaded(**made).logits, bare(**made).logits)


@pytest.mark.parametrize("name", THREE)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_answers_alike_and_is_independent(name, copied):
    kind, made = KINDS[name], batch(KINDS[name])
    model = zoo(kind)
    other = copied(model)
    with torch.no_grad():
        expected = model(**made).logits
        assert torch.equal(other(**made).logits, expected)
        trained(other, "wide", seed=8)
        assert not torch.equal(other(**made).logits, expected)
        assert torch.equal(model(**made).logits, expected)


@pytest.mark.parametrize("name", KINDS)
def test_every_row_follows_its_own_adapter(name):
    kind, made = KINDS[name], batch(KINDS[name], rows=8)
    model = zoo(kind)
    with torch.no_grad():
        mixed = model(**made, adapter_names=NAMES).logits
        assert torch.equal(model(**made).logits, logits_of(model, made, "wide"))  # names are gone
        for i, adapter in enumerate(NAMES):
            assert_close(mixed[i], logits_of(model, made, adapter)[i], **CLOSE)
        assert (mixed - kind.model()(**made).logits)[[0, 2, 4]].abs().amax(-1).min() > 1e-4


@pytest.mark.parametrize("name", KINDS)
def test_in_training_the_gradients_are_those_of_separate_passes(name):
    kind, made = KINDS[name], batch(KINDS[name], rows=8)
    model = without_dropout(zoo(kind)).train()
    adapters = ["wide", "low", "smooth"]

    def total(logits):
        return (logits * torch.linspace(-1, 1, logits.shape[-1])).sum()

    def gradients():
        found = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
        model.zero_grad(set_to_none=True)
        return found

    model.set_requires_grad(adapters)
    total(model(**made, adapter_names=NAMES).logits).backward()
    mixed = gradients()
    for adapter in adapters:
        model.set_adapter(adapter)
        rows = [i for i, n in enumerate(NAMES) if n == adapter]
        total(model(**rows_of(made, rows)).logits).backward()
    separate = gradients()
    assert mixed.keys() == separate.keys()
    for key, gradient in separate.items():
        assert gradient.abs().sum() > 0
        assert_close(mixed[key], gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_the_classifier_of_a_row_is_its_own_adapter_s(name):
    kind, made = KINDS[name], batch(KINDS[name], rows=8)
    model = zoo(kind)
    wrapper = model.get_base_model().classifier
    constants = {"wide": 1.0, "low": 2.0, "smooth": 3.0, "__base__": 4.0}
    heads = {**dict(wrapper.modules_to_save), "__base__": wrapper.original_module}
    with torch.no_grad():
        for adapter, constant in constants.items():
            for key, p in heads[adapter].named_parameters():
                p.fill_(constant if key in ("bias", "out_proj.bias") else 0.0)
        logits = model(**made, adapter_names=NAMES).logits
    expected = torch.tensor([constants[n] for n in NAMES])[:, None].expand(-1, 2)
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("name", ["t5", "llama", "bart"])
@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}],
    ids=["greedy", "beams", "returned"],
)
def test_generation_of_a_mixed_batch_is_that_of_each_row_s_adapter(name, options):
    kind, made = KINDS[name], batch(KINDS[name], rows=8)
    made.pop("labels", None)
    model = zoo(kind)
    options = {**options, "max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    mixed = model.generate(**made, adapter_names=NAMES, **options)
    each = len(mixed) // 8
    answers = set()
    for adapter in dict.fromkeys(NAMES):
        if adapter == "__base__":
            alone = kind.model().generate(**made, **options)
        else:
            model.set_adapter(adapter)
            alone = model.generate(**made, **options)
        answers.add(tuple(alone.flatten().tolist()))
        for i, n in enumerate(NAMES):
            if n == adapter:
                assert torch.equal(
                    mixed[i * each : (i + 1) * each], alone[i * each : (i + 1) * each]
                )
    assert len(answers) > 1


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_generation_with_a_cache_is_generation_without_one(name):
    kind, made = KINDS[name], batch(KINDS[name])
    made.pop("labels", None)
    model, options = adapted(kind), {"max_new_tokens": 6, "do_sample": False}
    cached = model.generate(**made, **options)
    assert torch.equal(cached, model.generate(**made, **options, use_cache=False))
    with model.disable_adapter():
        assert torch.equal(
            model.generate(**made, **options), kind.model().generate(**made, **options)
        )
    assert not torch.equal(cached, kind.model().generate(**made, **options))


def test_several_active_adapters_are_refused():
    model = zoo(KINDS["t5"])
    with pytest.raises(ConfigError, match=r"names 2 adapters but a row can follow only one"):
        model.base_model.set_adapter(["wide", "low"])
    assert model.active_adapters == ["wide"]


@pytest.mark.parametrize("merge", ["merge_and_unload", "merge_adapter"])
def test_merging_is_refused_and_says_what_to_do(merge):
    with pytest.raises(ConfigError, match=r"cannot be merged .* use unload\(\)"):
        getattr(adapted(KINDS["t5"]), merge)()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["wide", "wied", "low", "low"], r"unknown adapters wied; known: low, smooth, wide, __ba"),
        (["wide", "low"], r"2 entries for a batch of 4 rows; give one name per row"),
        (["wide"] * 3, r"3 entries for a batch of 4 rows"),
        ([], r"0 entries for a batch of 4 rows"),
    ],
)
@pytest.mark.parametrize("call", ["forward", "generate"])
def test_names_that_do_not_fit_the_rows_are_refused(call, names, message):
    kind, made = KINDS["llama"], batch(KINDS["llama"])
    model = zoo(kind)
    with torch.no_grad():
        expected = model(**made).logits
        with pytest.raises(ConfigError, match=message):
            getattr(model, call)(**made, adapter_names=names)
        assert torch.equal(model(**made).logits, expected)


def test_names_that_do_not_divide_an_encoder_s_rows_are_refused():
    kind, made = KINDS["t5"], batch(KINDS["t5"])
    model = zoo(kind)
    states = kind.model().get_encoder()(made["input_ids"])
    with pytest.raises(ConfigError, match=r"3 entries for a batch of 4 rows"):
        model(encoder_outputs=states, labels=made["labels"], adapter_names=["wide"] * 3)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_mixed_batches_in_training_with_gradient_checkpointing_are_refused():
    """The backward pass would compute every row again with the active adapter."""
    kind, made = KINDS["t5"], batch(KINDS["t5"])
    model = zoo(kind)
    model.get_base_model().gradient_checkpointing_enable()
    names = ["wide", "low", "__base__", "wide"]
    with torch.no_grad():
        model(**made, adapter_names=names)
    with pytest.raises(ConfigError, match="gradient checkpointing"):
        model.train()(**made, adapter_names=names)


@pytest.mark.parametrize("name", THREE)
def test_an_unloaded_model_can_be_adapted_again(name):
    kind, made = KINDS[name], batch(KINDS[name])
    again = trained(get_peft_model(zoo(kind).unload(), config(kind)))
    with torch.no_grad():
        assert torch.equal(again(**made).logits, adapted(kind)(**made).logits)


def test_hooks_are_gone_after_a_mixed_batch_even_when_it_fails():
    def hooks(model):
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    kind, made = KINDS["bert"], batch(KINDS["bert"])
    model = zoo(kind)
    before = hooks(model)
    names = ["wide", "low", "__base__", "wide"]
    model(**made, adapter_names=names)
    assert hooks(model) == before
    with pytest.raises(IndexError):
        model(made["input_ids"] + 1000, adapter_names=names)
    assert hooks(model) == before
