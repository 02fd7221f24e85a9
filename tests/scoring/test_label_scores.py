"""A label's score is what the model itself says of it, whatever it is batched with."""

import pytest
import torch
from peft import (
    LoraConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from peft_smop import SMoPConfig
from peft_smop.errors import ConfigError
from peft_smop.scoring import evaluate, formulate, predict
from peft_smop.scoring import evaluation as evaluation_module
from peft_smop.tasks import Example, Task

TASK = Task("toy", "{text}", ("warm", "cold"), ("warm", "the cold dog"))
EXAMPLES = tuple(
    Example(str(i), text, i % 2)
    for i, text in enumerate(
        ["the cat is red", "the dog is blue number 3", "the owl", "the cow is black number 7"]
    )
)
CONFIGS = {
    "smop": lambda task_type: SMoPConfig(task_type=task_type),
    "prompt tuning": lambda task_type: PromptTuningConfig(
        task_type=task_type, num_virtual_tokens=6, num_transformer_submodules=1
    ),
}

ENCODER_DECODER_CONFIGS = {
    **CONFIGS,
    "P-tuning": lambda task_type: PromptEncoderConfig(task_type=task_type, num_virtual_tokens=6),
    "prefix tuning": lambda task_type: PrefixTuningConfig(
        task_type=task_type, num_virtual_tokens=6
    ),
    "LoRA": lambda task_type: LoraConfig(task_type=task_type, init_lora_weights=False),
}


def formulated(saved_models, kind, method, **options):
    auto, task_type = {
        "t5": (AutoModelForSeq2SeqLM, "SEQ_2_SEQ_LM"),
        "llama": (AutoModelForCausalLM, "CAUSAL_LM"),
        "bert": (AutoModelForSequenceClassification, "SEQ_CLS"),
    }[kind]
    tokenizer = AutoTokenizer.from_pretrained(saved_models[kind])
    base = auto.from_pretrained(saved_models[kind])
    model = get_peft_model(base, ENCODER_DECODER_CONFIGS[method](task_type)).eval()
    options = {"max_length": 40, **options}
    return model, formulate(TASK, base, tokenizer, task_type=task_type, **options)


@pytest.mark.parametrize("method", ENCODER_DECODER_CONFIGS)
def test_an_encoder_decoder_s_score_is_minus_its_own_summed_loss(saved_models, method):
    model, formulation = formulated(saved_models, "t5", method)
    found = predict(model, formulation, EXAMPLES, batch_size=3)
    tokenizer = formulation.tokenizer
    for prediction in found:
        for word, value in zip(TASK.verbalizers, prediction.log_probabilities, strict=True):
            inputs = tokenizer(prediction.example.text, return_tensors="pt")
            inputs.pop("token_type_ids", None)
            labels = tokenizer(word, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                loss = model(**inputs, labels=labels).loss
            assert_close(value, -(loss * labels.shape[1]).item(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", CONFIGS)
def test_a_decoder_s_score_is_minus_its_own_summed_loss_on_the_answer(saved_models, method):
    model, formulation = formulated(saved_models, "llama", method)
    tokenizer = formulation.tokenizer
    for prediction in predict(model, formulation, EXAMPLES, batch_size=3):
        for word, value in zip(TASK.verbalizers, prediction.log_probabilities, strict=True):
            context = tokenizer(prediction.example.text + " answer:")["input_ids"]
            answer = [*tokenizer(word)["input_ids"], tokenizer.eos_token_id]
            labels = torch.tensor([[-100] * len(context) + answer])
            with torch.no_grad():
                loss = model(input_ids=torch.tensor([context + answer]), labels=labels).loss
            assert_close(value, -(loss * len(answer)).item(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("adapt", ["smop", "lora", "nothing"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3", "gpt2", "opt"])
def test_a_decoder_that_reads_a_text_once_scores_as_if_it_read_it_with_every_label(
    tmp_path, name, adapt
):
    from saved import save
    from tiny import KINDS

    texts = [example.text for example in EXAMPLES] + ["warm the cold dog answer:"]
    folder = save(KINDS[name], tmp_path, texts=texts)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(folder).eval()
    if adapt == "smop":
        model = get_peft_model(base, SMoPConfig(task_type="CAUSAL_LM"))
    elif adapt == "lora":
        config = LoraConfig(
            task_type="CAUSAL_LM", init_lora_weights=False, fan_in_fan_out=name == "gpt2"
        )
        model = get_peft_model(base, config)
    else:
        model = base
    formulation = formulate(TASK, base, tokenizer, task_type="CAUSAL_LM", max_length=40)
    features = [formulation.encode(example) for example in EXAMPLES]
    model.eval()
    with torch.inference_mode():
        once = formulation.label_scores(model, features)
        routes = getattr(model, "last_routes", None)
        whole = formulation._whole_rows(model, features)
    assert_close(once.log_probabilities, whole.log_probabilities, rtol=1e-4, atol=1e-4)
    assert (once.repeats, whole.repeats) == (1, 2)
    if routes is not None:
        assert torch.equal(routes.indices, model.last_routes.indices[::2])


def test_an_encoder_s_scores_are_its_head_s_log_probabilities(saved_models):
    model, formulation = formulated(saved_models, "bert", "smop")
    for prediction in predict(model, formulation, EXAMPLES):
        inputs = formulation.tokenizer(prediction.example.text, return_tensors="pt")
        with torch.no_grad():
            expected = model(**inputs).logits.log_softmax(-1)[0]
        assert_close(torch.tensor(prediction.log_probabilities), expected)


@pytest.mark.parametrize("kind", ["t5", "llama", "bert"])
def test_order_and_batching_change_nothing(saved_models, kind):
    model, formulation = formulated(saved_models, kind, "smop")
    together = predict(model, formulation, EXAMPLES, batch_size=4)
    alone = predict(model, formulation, EXAMPLES, batch_size=1)
    assert [p.example for p in together] == list(EXAMPLES)
    for one, other in zip(together, alone, strict=True):
        assert one.prompt == other.prompt
        assert_close(one.log_probabilities, other.log_probabilities, rtol=1e-4, atol=1e-5)


def test_a_decoder_s_batch_shrinks_to_the_logits_that_fit(saved_models, monkeypatch):
    model, formulation = formulated(saved_models, "llama", "smop")
    expected = [p.label for p in predict(model, formulation, EXAMPLES)]
    seen = []
    monkeypatch.setattr(evaluation_module, "KEPT_BUDGET", 1)
    assert [
        p.label for p in predict(model, formulation, EXAMPLES, on_batch=seen.append)
    ] == expected
    assert seen == [1, 1, 1, 1]


def test_what_is_too_long_is_cut_before_its_end_token_and_counted(saved_models):
    _, formulation = formulated(saved_models, "t5", "smop", max_length=8)
    short = formulation.encode(Example("0", "the cat", 0))["input_ids"]
    assert short[-1] == 1
    assert formulation.truncated == 0
    cut = formulation.encode(Example("0", "the cat " * 9, 0))["input_ids"]
    assert len(cut) == 8
    assert cut[-1] == 1
    assert formulation.truncated == 1


def test_a_prompt_that_leaves_no_room_in_the_model_s_positions_is_refused(saved_models):
    with pytest.raises(
        ConfigError, match=r"60 virtual tokens leaves 2 of the model's 64 positions"
    ):
        formulated(saved_models, "bert", "smop", prompt_length=60)


def test_collapse_and_dead_prompts_are_said(saved_models):
    model, formulation = formulated(saved_models, "t5", "smop")
    with torch.no_grad():
        model.smop_layer["default"].router.zero_()  # equal logits: the first prompt takes all
    found = evaluate(model, formulation, EXAMPLES, majority_label=0)
    assert found.load == (1.0, 0.0, 0.0, 0.0)
    assert any(a.startswith("dead prompts: 3 of 4") for a in found.alarms)
    assert found.loss > 0
    # a head that always says the second label, then one that tells the rows apart
    model, formulation = formulated(saved_models, "bert", "smop")
    head = model.base_model.model.classifier.modules_to_save["default"]
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([0.0, 1.0]))
    constant = evaluate(model, formulation, EXAMPLES, majority_label=0)
    assert any(a.startswith("collapsed: 100%") for a in constant.alarms)
    one_label = tuple(Example(e.id, e.text, 1) for e in EXAMPLES)
    honest = evaluate(model, formulation, one_label, majority_label=1)
    assert not any(a.startswith("collapsed") for a in honest.alarms)


@pytest.mark.parametrize(
    ("routing", "count"), [("linear", 4), ("hashed", 4), ("uniform", 0), ("stochastic", 0)]
)
def test_only_where_a_prompt_is_chosen_there_is_a_load(saved_models, routing, count):
    base = AutoModelForSeq2SeqLM.from_pretrained(saved_models["t5"])
    tokenizer = AutoTokenizer.from_pretrained(saved_models["t5"])
    formulation = formulate(TASK, base, tokenizer, task_type="SEQ_2_SEQ_LM", max_length=40)
    assert evaluate(base, formulation, EXAMPLES, majority_label=0).load == ()
    model = get_peft_model(base, SMoPConfig(task_type="SEQ_2_SEQ_LM", routing=routing)).eval()
    found = evaluate(model, formulation, EXAMPLES, majority_label=0)
    assert len(found.load) == count
    assert not count or sum(found.load) == pytest.approx(1)


@pytest.mark.parametrize(
    ("routing", "revives", "remedy"),
    [
        ("linear", False, "train with --method smop-posterior or --revive-dead-prompts"),
        ("linear", True, "train with --method smop-posterior"),
        ("posterior", False, "fewer may do, --num-prompts"),
        ("posterior", True, "fewer may do, --num-prompts"),
        ("hashed", False, None),
    ],
)
def test_the_alarm_of_dead_prompts_names_what_was_not_tried(saved_models, routing, revives, remedy):
    base = AutoModelForSeq2SeqLM.from_pretrained(saved_models["t5"])
    tokenizer = AutoTokenizer.from_pretrained(saved_models["t5"])
    config = SMoPConfig(task_type="SEQ_2_SEQ_LM", routing=routing, num_prompts=4)
    model = get_peft_model(base, config).eval()
    formulation = formulate(TASK, base, tokenizer, task_type="SEQ_2_SEQ_LM", max_length=40)
    if routing != "hashed":
        with torch.no_grad():
            model.smop_layer["default"].router.zero_()
    one = (EXAMPLES[0],) * 3  # a hash sends them to one prompt too
    found = evaluate(model, formulation, one, majority_label=0, revives=revives)
    (alarm,) = [a for a in found.alarms if a.startswith("dead prompts: 3 of 4")]
    end = "counted from 0)" if remedy is None else f"counted from 0); {remedy}"
    assert alarm.endswith(end)


class Passes:
    """Counts the tokens, padding included, of every pass that encodes."""

    def __init__(self, model):
        self.tokens = []
        model.register_forward_pre_hook(self.count, with_kwargs=True)

    def count(self, module, args, kwargs):
        if "encoder_outputs" not in kwargs:
            self.tokens.append(kwargs["input_ids"].numel())


@pytest.mark.parametrize(("routing", "passes"), [("linear", 2), ("released", 1)])
def test_a_batch_is_cut_where_padding_would_cost_unless_its_rows_see_each_other(
    saved_models, monkeypatch, routing, passes
):
    config = SMoPConfig(task_type="SEQ_2_SEQ_LM", routing=routing)
    monkeypatch.setitem(ENCODER_DECODER_CONFIGS, routing, lambda task_type: config)
    model, formulation = formulated(saved_models, "t5", routing)
    long = " ".join(["the cat is red and the dog is blue"] * 4)
    examples = [Example(str(i), text, 0) for i, text in enumerate(["the cat", long, "the dog"])]
    seen = Passes(model)
    found = predict(model, formulation, examples)
    assert [p.example for p in found] == examples
    assert len(seen.tokens) == passes
    text = sum(len(formulation.encode(e)["input_ids"]) for e in examples)
    if passes > 1:
        assert sum(seen.tokens) <= 1.1 * text
    else:
        assert sum(seen.tokens) > 1.1 * text
