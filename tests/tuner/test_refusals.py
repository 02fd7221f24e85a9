"""What cannot work is refused at the door, in one sentence with field, value and remedy."""

import json
import subprocess
import sys

import pytest
import torch
from peft import PeftType, get_peft_model
from torch import nn

from peft_smop import SMoPConfig
from peft_smop.errors import ConfigError, SMoPError
from peft_smop.registration import register
from peft_smop.tuner.model import SMoPModel
from peft_smop.tuner.strategies import STRATEGIES
from tiny import KINDS, THREE, adapted, batch

REFUSED = {
    "no prompt": ({"num_prompts": 0}, "num_prompts=0 .* at least 1"),
    "a negative number": ({"num_prompts": -1}, "num_prompts=-1 .* at least 1"),
    "a truth value": ({"num_prompts": True}, "num_prompts=True .* whole number"),
    "no virtual token": ({"num_virtual_tokens": 0}, "num_virtual_tokens=0 .* at least 1"),
    "one prompt of four": (
        {"routing": "single", "num_prompts": 4},
        "num_prompts=4 contradicts routing='single'",
    ),
    "noise without a router": (
        {"routing": "single", "perturbation": True},
        "perturbation=True contradicts routing='single'",
    ),
    "text without text": ({"init": "text"}, "init='text' needs init_text"),
    "empty text": ({"init": "text", "init_text": ""}, "init='text' needs init_text"),
    "labels without labels": ({"init": "labels"}, "init='labels' needs init_labels"),
    "adapter without adapter": ({"init": "adapter"}, "init='adapter' needs init_adapter"),
    "no spread": ({"init": "normal", "init_std": 0.0}, "init_std=0.0 must be above 0"),
    "no number as spread": ({"init": "normal", "init_std": float("nan")}, "init_std=nan"),
    "a newer format": ({"format_version": 3}, "format_version=3 is newer .* upgrade peft-smop"),
    "more prompts than there are": (
        {"top_k": 5},
        "top_k=5 exceeds num_prompts=4; lower top_k",
    ),
    "no prompt chosen": ({"top_k": 0}, "top_k=0 must be at least 1"),
    "several prompts of gumbel": (
        {"routing": "gumbel", "top_k": 2},
        "top_k=2 contradicts routing='gumbel': it is an option of linear; leave top_k out",
    ),
    "noise on a random choice": (
        {"routing": "stochastic", "perturbation": True},
        "perturbation=True contradicts routing='stochastic': .* linear, released; leave",
    ),
    "a temperature without a softmax": (
        {"routing": "uniform", "temperature": 2.0},
        "temperature=2.0 contradicts routing='uniform': .* linear, gumbel; leave",
    ),
    "consistency of a choice": (
        {"consistency": 1.0},
        "consistency=1.0 contradicts routing='linear': it is an option of stochastic",
    ),
    "negative consistency": (
        {"routing": "stochastic", "consistency": -1.0},
        "consistency=-1.0 must be at least 0",
    ),
    "a fixed prompt that is not there": (
        {"routing": "fixed", "fixed_prompt": 4},
        "fixed_prompt=4 is not one of num_prompts=4; choose 0 to 3",
    ),
    "a fixed prompt below the first": (
        {"routing": "fixed", "fixed_prompt": -1},
        "fixed_prompt=-1 is not one of num_prompts=4; choose 0 to 3",
    ),
    "a fixed prompt of a choice": (
        {"fixed_prompt": 0},
        "fixed_prompt=0 contradicts routing='linear': it is an option of fixed; leave",
    ),
    "dropout and noise": (
        {"router_dropout": 0.2, "perturbation": True},
        "router_dropout=0.2 stands in for the perturbation; set perturbation=False",
    ),
    "dropout and the noise of the default": (
        {"router_dropout": 0.2},
        "router_dropout=0.2 stands in for the perturbation; set perturbation=False",
    ),
    "dropout of everything": (
        {"router_dropout": 1.0, "perturbation": False},
        r"router_dropout=1.0 must be in \[0, 1\)",
    ),
    "an end without a way": (
        {"final_temperature": 0.5},
        "final_temperature=0.5 and annealing_steps=None belong together; give both or neither",
    ),
    "a way without an end": (
        {"routing": "gumbel", "annealing_steps": 10},
        "final_temperature=None and annealing_steps=10 belong together",
    ),
    "a temperature of zero": ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
    "no number as temperature": ({"temperature": float("nan")}, "temperature=nan must be above 0"),
    "an end of zero": (
        {"final_temperature": 0.0, "annealing_steps": 5},
        "final_temperature=0.0 must be above 0",
    ),
    "no way to go": (
        {"final_temperature": 0.5, "annealing_steps": 0},
        "annealing_steps=0 must be above 0",
    ),
    "balance of one prompt": (
        {"routing": "single", "load_balancing": 0.1},
        "load_balancing=0.1 contradicts routing='single', which has no router; leave",
    ),
    "logits that are not there": (
        {"routing": "uniform", "z_loss": 0.1},
        "z_loss=0.1 contradicts routing='uniform', which has no router; leave z_loss out",
    ),
    "a negative balance": ({"load_balancing": -0.1}, "load_balancing=-0.1 must be at least 0"),
    "a negative z-loss": ({"z_loss": -1.0}, "z_loss=-1.0 must be at least 0"),
    "no number as weight": ({"z_loss": float("nan")}, "z_loss=nan must be at least 0"),
    "the rank of a network": (
        {"parameterisation": "residual", "rank": 4},
        "rank=4 contradicts parameterisation='residual'; leave rank out",
    ),
    "the rank of the prompts": ({"rank": 4}, "rank=4 contradicts parameterisation='direct'"),
    "a network of a basis": (
        {"parameterisation": "low-rank", "hidden_size": 8},
        "hidden_size=8 contradicts parameterisation='low-rank'",
    ),
    "a rank beyond the tokens": (
        {"parameterisation": "low-rank", "rank": 21},
        "rank=21 exceeds the 20 virtual tokens of all prompts; lower rank",
    ),
    "no rank": ({"parameterisation": "low-rank", "rank": 0}, "rank=0 must be at least 1"),
    "a mean for no head": ({"pooling": "mean"}, "pooling='mean' is for classification heads, not"),
    "no hidden unit": (
        {"parameterisation": "residual", "hidden_size": 0},
        "hidden_size=0 must be at least 1",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_configuration_that_cannot_work_is_refused(what):
    options, message = REFUSED[what]
    with pytest.raises(ConfigError, match=message) as caught:
        SMoPConfig(task_type="SEQ_2_SEQ_LM", **options)
    assert "\n" not in str(caught.value)


WRONGLY_TYPED = {
    "num_prompts": (2.5, "num_prompts=2.5 must be a whole number"),
    "num_virtual_tokens": (None, "num_virtual_tokens=None must be a whole number"),
    "router_scope": ("contxt", "unknown router_scope 'contxt'; did you mean context"),
    " routing": ("liner", "unknown routing 'liner'; did you mean linear"),
    "  routing": ("quantum", "unknown routing 'quantum'; known: fixed, gumbel"),
    "pooling": ("max", "unknown pooling 'max'"),
    " init": ("vocabulry", "unknown init 'vocabulry'; did you mean vocabulary"),
    " parameterisation": ("residul", "unknown parameterisation 'residul'; did you mean residual"),
    " position": ("behind", "unknown position 'behind'"),
    "position": (None, "position=None must be one of 'before'"),
    " router_scope": (0, "router_scope=0 must be at least 1 token"),
    " seed": (-1, "seed=-1 must be a whole number from 0 to 4294967295"),
    "  seed": (2**32, "seed=4294967296 must be a whole number from 0"),
    "routing": (3, "routing=3 must be one of 'linear'"),
    "init": (None, "init=None must be one of 'vocabulary'"),
    "init_std": ("wide", "init_std='wide'"),
    "format_version": ("1", "format_version='1'"),
    "init_text": (3, "init_text"),
    "seed": (None, "seed=None"),
    "perturbation": (1, "perturbation=1 must be true or false"),
    "top_k": (2.0, "top_k=2.0 must be a whole number"),
    "router_dropout": ("0.2", "router_dropout='0.2' must be a number"),
    "temperature": (True, "temperature=True must be a number"),
    "final_temperature": ("0.5", "final_temperature='0.5' must be a number"),
    "annealing_steps": (10.5, "annealing_steps=10.5 must be a whole number"),
    "consistency": ("much", "consistency='much' must be a number"),
    "fixed_prompt": ("first", "fixed_prompt='first' must be a whole number"),
    "load_balancing": ("1", "load_balancing='1' must be a number"),
    "z_loss": ("0", "z_loss='0' must be a number"),
    "parameterisation": (None, "parameterisation=None must be one of 'direct'"),
    "hidden_size": (6.0, "hidden_size=6.0 must be a whole number"),
    "rank": ("8", "rank='8' must be a whole number"),
}


@pytest.fixture(scope="module")
def messages_of_wrong_types():
    """In a process of its own, as users have it: these tests check types at every call."""
    script = """
import json, sys
from peft_smop import SMoPConfig
from peft_smop.errors import ConfigError
found = {}
for field, value in json.loads(sys.argv[1]).items():
    more = {"init": "text"} if field == "init_text" else {}
    try:
        SMoPConfig(task_type="SEQ_2_SEQ_LM", **{field.strip(): value}, **more)
        found[field] = "accepted"
    except Exception as error:
        found[field] = f"{isinstance(error, ConfigError)}: {error}"
print(json.dumps(found))
"""
    given = json.dumps({field: value for field, (value, _) in WRONGLY_TYPED.items()})
    done = subprocess.run(
        [sys.executable, "-c", script, given], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("field", WRONGLY_TYPED)
def test_a_value_of_a_wrong_type_is_refused(field, messages_of_wrong_types):
    """A configuration is also read from JSON, where anything may stand."""
    found = messages_of_wrong_types[field]
    assert found.startswith("True: ")
    assert WRONGLY_TYPED[field][1] in found


def test_an_unknown_field_is_refused():
    with pytest.raises(TypeError, match="num_prompt"):
        SMoPConfig(num_prompt=4)


def test_a_wrong_task_type_is_refused_by_peft():
    with pytest.raises(ValueError, match="task type"):
        SMoPConfig(task_type="SEQ2SEQ")


def test_defaults_are_the_paper_s():
    config = SMoPConfig()
    assert (config.num_prompts, config.num_virtual_tokens) == (4, 5)
    assert (config.routing, config.perturbation) == ("linear", True)
    assert config.peft_type == PeftType.SMOP == "SMOP"
    assert not config.is_prompt_learning
    single = SMoPConfig(routing="single")
    assert (single.num_prompts, single.perturbation) == (1, None)
    # nothing to perturb is no contradiction
    assert SMoPConfig(routing="single", num_prompts=1, perturbation=False).num_prompts == 1


@pytest.mark.parametrize("routing", STRATEGIES)
def test_nothing_to_perturb_contradicts_no_strategy(routing):
    perturbs = routing in ("linear", "released")
    assert SMoPConfig(routing=routing, perturbation=False).perturbation is (
        False if perturbs else None
    )
    assert SMoPConfig(routing=routing).perturbation is (True if perturbs else None)


@pytest.mark.parametrize("routing", ["linear", "gumbel", "fixed", "released"])
def test_losses_on_the_routing_go_with_every_router(routing):
    SMoPConfig(routing=routing, load_balancing=0.1, z_loss=0.1)


def test_what_is_no_transformers_model_is_refused():
    with pytest.raises(ConfigError, match="Sequential is not a transformers model"):
        get_peft_model(nn.Sequential(nn.Linear(2, 2)), SMoPConfig())


def test_a_model_without_text_embeddings_is_refused():
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64,
        image_size=8, patch_size=4,
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"input embedding|inputs_embeds"):
        get_peft_model(ViTForImageClassification(config), SMoPConfig())


def test_a_ready_made_attention_mask_has_no_room_for_the_prompt():
    kind = KINDS["llama"]
    model, made = adapted(kind), batch(kind)
    made["attention_mask"] = torch.ones(4, 1, 7, 7, dtype=torch.bool)
    with pytest.raises(ConfigError, match="two-dimensional attention mask"):
        model(**made)


@pytest.mark.parametrize("shape", [(4, 9), (4, 5), (1, 7)])
@pytest.mark.parametrize("name", KINDS)
def test_a_mask_that_is_not_of_the_tokens_is_refused(name, shape):
    kind = KINDS[name]
    model, made = adapted(kind), batch(kind)
    made["attention_mask"] = torch.ones(shape, dtype=torch.long)
    with pytest.raises(
        ConfigError, match=rf"attention_mask .*\({shape[0]}, {shape[1]}\) for 4 rows"
    ):
        model(**made)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("routing", ["linear", "posterior"])
@pytest.mark.parametrize("name", KINDS)
def test_a_batch_without_rows_is_refused(name, routing, training):
    """The bare backbones fail at it, too, each in its own way."""
    kind = KINDS[name]
    model = adapted(kind, routing=routing).train(training)
    made = {key: value[:0] for key, value in batch(kind).items()}
    if "labels" not in made:
        made["labels"] = (
            made["input_ids"] if kind.task_type == "CAUSAL_LM" else torch.zeros(0).long()
        )
    with pytest.raises(ConfigError, match="has no rows"):
        model(**made)
    if model.can_generate():
        with pytest.raises(ConfigError, match="has no rows"):
            model.generate(input_ids=made["input_ids"], max_new_tokens=1)


MISSHAPEN = {
    "both": (lambda ids, x: {"input_ids": ids, "inputs_embeds": x}, "say the same twice"),
    "ids of one row": (
        lambda ids, x: {"input_ids": ids[0]},
        r"shape \(7,\); give \(rows, tokens\)",
    ),
    "embeddings of one row": (lambda ids, x: {"inputs_embeds": x[0]}, r"\(rows, tokens, width\)"),
    "no tokens": (lambda ids, x: {"input_ids": ids[:, :0]}, "have no tokens"),
    "narrow": (lambda ids, x: {"inputs_embeds": x[..., 1:]}, "31 wide, the model's embeddings 32"),
}


@pytest.mark.parametrize("routing", ["linear", "posterior"])
@pytest.mark.parametrize("what", MISSHAPEN)
@pytest.mark.parametrize("name", THREE)
def test_tokens_of_another_shape_than_a_batch_s_are_refused(name, what, routing):
    kind = KINDS[name]
    model, made = adapted(kind, routing=routing).train(), batch(kind)
    ids = made.pop("input_ids")
    made.pop("attention_mask", None)
    made.setdefault("labels", ids.masked_fill(torch.arange(7) < 5, -100))
    if kind.task_type == "SEQ_CLS":
        made["labels"] = torch.zeros(len(ids)).long()
    given, sentence = MISSHAPEN[what]
    x = model.get_input_embeddings()(ids).detach()
    with pytest.raises(ConfigError, match=sentence):
        model(**given(ids, x), **made)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", THREE)
def test_embeddings_in_double_precision_are_for_models_in_double_precision(name, training):
    kind = KINDS[name]
    model, made = adapted(kind).train(training), batch(kind)
    ids = made.pop("input_ids")
    if kind.task_type == "CAUSAL_LM":
        made["labels"] = ids.masked_fill(torch.arange(7) < 5, -100)
    x = model.get_input_embeddings()(ids).detach()
    with pytest.raises(ConfigError, match=r"torch\.float64, the model is torch\.float32"):
        model(inputs_embeds=x.double(), **made)
    double = model.double()
    x = model.get_input_embeddings()(ids).detach()
    assert double(inputs_embeds=x, **made).logits.dtype == torch.float64


def test_an_input_that_is_too_long_with_the_prompt_says_so_as_the_backbone_does():
    """Position tables end somewhere; the prompt takes places in them."""
    kind = KINDS["gpt2"]  # 64 positions
    model = adapted(kind)
    fits = torch.randint(3, 100, (1, 59))
    model(input_ids=fits)
    with pytest.raises((IndexError, ConfigError)):
        model(input_ids=torch.randint(3, 100, (1, 60)))


def test_registration_is_idempotent_and_plain():
    before = list(PeftType)
    register("SMOP", SMoPConfig, SMoPModel)
    assert list(PeftType) == before
    assert PeftType("SMOP") is PeftType.SMOP
    assert PeftType["SMOP"] is PeftType.SMOP
    assert PeftType.SMOP.value == PeftType.SMOP.name == "SMOP"
    assert repr(PeftType.SMOP) == "<PeftType.SMOP: 'SMOP'>"
    assert len(set(PeftType)) == len(before)


def test_a_method_of_that_name_in_peft_itself_is_never_replaced(monkeypatch):
    from peft import LoraConfig
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    monkeypatch.setitem(PEFT_TYPE_TO_CONFIG_MAPPING, PeftType.SMOP, LoraConfig)
    with pytest.raises(SMoPError, match="brings a method named SMOP of its own"):
        register("SMOP", SMoPConfig, SMoPModel)


def test_a_peft_type_survives_pickling():
    import copy
    import pickle

    assert pickle.loads(pickle.dumps(PeftType.SMOP)) is PeftType.SMOP
    assert copy.deepcopy(PeftType.SMOP) is PeftType.SMOP
    assert pickle.loads(pickle.dumps(SMoPConfig())) == SMoPConfig()
