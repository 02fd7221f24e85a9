"""What comes from PEFT is PEFT's to the last bit; what is ours says what it is."""

import pytest
import torch
from peft import (
    IA3Config,
    LoraConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    TaskType,
    get_peft_model,
)

from peft_smop.errors import ConfigError
from peft_smop.methods import METHODS, MethodSpec, Setting, build, configure
from tiny import KINDS, THREE, batch

THEIRS = {
    "prompt-tuning": lambda t: PromptTuningConfig(
        task_type=t,
        num_virtual_tokens=5,
        num_transformer_submodules=1,
        prompt_tuning_init="SAMPLE_VOCAB",
    ),
    "p-tuning": lambda t: PromptEncoderConfig(
        task_type=t,
        num_virtual_tokens=20,
        num_transformer_submodules=1,
        encoder_reparameterization_type="MLP",
        encoder_hidden_size=128,
    ),
    "prefix-tuning": lambda t: PrefixTuningConfig(task_type=t, num_virtual_tokens=20),
    "lora": lambda t: LoraConfig(task_type=t, r=8, lora_alpha=16),
    "ia3": lambda t: IA3Config(task_type=t),
}


def setting(kind) -> Setting:
    return Setting(TaskType(kind.task_type), ("yes", "no"), "nowhere", seed=0)


@pytest.mark.parametrize("name", THREE)
@pytest.mark.parametrize("method", THEIRS)
def test_no_wrapper_changes_a_logit_or_a_gradient_of_what_comes_from_peft(name, method):
    kind = KINDS[name]
    made = batch(kind)
    outcomes = []
    for adapt in (
        lambda base: build(base, MethodSpec(name=method), setting(kind)),
        lambda base: get_peft_model(base, THEIRS[method](kind.task_type)),
    ):
        base = kind.model()
        torch.manual_seed(3)
        model = adapt(base).eval()
        logits = model(**made).logits
        logits.square().mean().backward()
        trained = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        outcomes.append((logits, trained))
    (ours, our_gradients), (theirs, their_gradients) = outcomes
    assert torch.equal(ours, theirs)
    assert our_gradients.keys() == their_gradients.keys()
    assert len(our_gradients) > 0
    assert all(torch.equal(our_gradients[n], their_gradients[n]) for n in our_gradients)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", THREE)
def test_only_full_fine_tuning_changes_the_backbone(name, method):
    kind = KINDS[name]
    base = kind.model()
    own = {n for n, _ in base.named_parameters()}
    model = build(base, MethodSpec(name=method), setting(kind))
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    if method == "full":
        assert trained == own
    else:
        bare = {n.removeprefix("base_model.model.").removeprefix("base_model.") for n in trained}
        assert not {n for n in bare & own if not n.startswith("classifier")}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "smops"}, "unknown method 'smops'; did you mean smop"),
        ({"name": "lora", "num_prompts": 4}, "num_prompts=4 is no option of lora, but of smop"),
        (
            {"name": "prompt-tuning", "init": "labels"},
            "init='labels' is no option of prompt-tuning",
        ),
        ({"name": "single", "top_k": 2}, "top_k=2 is no option of single, but of smop"),
        ({"name": "smop", "top_k": 5}, "top_k=5 exceeds num_prompts=4"),
        ({"name": "smop", "routing": "gumbel", "top_k": 2}, "top_k=2 contradicts routing='gumbel'"),
        (
            {"name": "smop", "routing": "stochastic", "perturbation": True},
            "perturbation=True contradicts routing='stochastic'",
        ),
        ({"name": "houlsby", "bottleneck_size": 0}, "bottleneck_size=0"),
    ],
)
def test_options_that_cannot_be_are_refused_with_the_reason(given, message):
    with pytest.raises(ConfigError, match=message):
        configure(MethodSpec(**given), setting(KINDS["t5"]))


def test_a_method_that_does_not_go_with_a_model_says_so():
    kind = KINDS["t5"]
    odd = kind.model()
    unheard_of = type("OddConfig", (type(odd.config),), {"model_type": "unheard-of"})
    odd.config.__class__ = unheard_of
    with pytest.raises(ConfigError, match="lora does not go with T5ForConditionalGeneration"):
        build(odd, MethodSpec(name="lora"), setting(kind))


def test_an_annealed_temperature_moves_over_the_planned_steps():
    config = configure(
        MethodSpec(temperature=4.0, final_temperature=1.0),
        Setting(TaskType.SEQ_2_SEQ_LM, (), "nowhere", 0, steps=70),
    )
    assert config.annealing_steps == 70
