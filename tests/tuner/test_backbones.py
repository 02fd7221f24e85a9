"""What every architecture must do: the method's answer, row by row, with any padding."""

import pytest
import torch
from peft import get_peft_model
from torch.testing import assert_close
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForTokenClassification,
    BertModel,
    LlamaConfig,
    LlamaModel,
    T5Config,
    T5EncoderModel,
)

from peft_smop import SMoPConfig
from tiny import KINDS, VOCABULARY, WIDTH, adapted, alone, answer, attended, batch, decided, row

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
WITHOUT_DECODER = [name for name, kind in KINDS.items() if kind.task_type != "SEQ_2_SEQ_LM"]


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.fixture(scope="module")
def model(kind):
    return adapted(kind)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def padded(made, left: int, right: int):
    """The rows with padding of their own around them; labels of a decoder are left alone."""
    out = {"labels": made["labels"]} if "labels" in made else {}
    for key, fill in (("input_ids", 9), ("attention_mask", 0)):
        out[key] = torch.nn.functional.pad(made[key], (left, right), value=fill)
    return out


def test_every_row_gets_its_own_scaled_prompt_before_its_own_tokens(kind, model):
    made, bare = batch(kind, rows=6), kind.model()
    logits = model(**made).logits
    if kind.task_type == "SEQ_CLS":
        bare.classifier.load_state_dict(
            model.get_base_model().classifier.modules_to_save["default"].state_dict()
        )
    routes = model.last_routes
    assert len(set(routes.indices[:, 0].tolist())) > 1
    for i in range(6):
        own = row(made, i)
        c, p, x = alone(bare, model.smop_layer, own)
        assert routes.indices[i].item() == c
        assert_close(routes.probabilities[i, 0], p, **CLOSE)
        assert_close(attended(kind, made, logits, i), answer(kind, bare, x, own), **CLOSE)


@pytest.mark.parametrize("rows", [1, 4, 5, 3], ids=["b=1", "b=k", "b=l", "b=3"])
def test_a_batch_equals_its_rows_one_by_one(kind, model, rows):
    made = batch(kind, rows=rows, seed=rows)
    logits, routes = model(**made).logits, model.last_routes
    for i in range(rows):
        own = row(made, i)
        assert_close(
            attended(kind, made, logits, i), attended(kind, own, model(**own).logits, 0), **CLOSE
        )
        assert_close(model.last_routes.logits[0], routes.logits[i], **CLOSE)
        assert torch.equal(model.last_routes.indices[0], routes.indices[i])


@pytest.mark.parametrize(
    ("kind", "left", "right"),
    [
        (name, left, right)
        for name, kind in KINDS.items()
        for left, right in ((0, 3), (3, 0), (2, 1))
        if kind.left_padding_harmless or not left
    ],
    indirect=["kind"],
)
def test_padding_changes_neither_route_nor_output(kind, model, left, right):
    made = row(batch(kind, seed=3), 0)
    logits, routes = model(**made).logits, model.last_routes
    more = padded(made, left, right)
    assert_close(attended(kind, more, model(**more).logits, 0), logits, **CLOSE)
    assert torch.equal(model.last_routes.indices, routes.indices)
    assert_close(model.last_routes.logits, routes.logits)


@pytest.mark.parametrize("name", ["bart", "bert", "roberta"])
def test_left_padding_changes_what_these_answer(name):
    """With a prompt before it BART's text is pressed together; BERT pools the first slot."""
    kind = KINDS[name]
    assert not kind.left_padding_harmless
    made = row(batch(kind), 0)
    for model, changes in ((kind.model(), True), (adapted(kind), name != "bart")):
        difference = model(**padded(made, 3, 0)).logits - model(**made).logits
        assert (difference.abs().max() > 1e-4).item() is changes


def test_with_the_adapter_disabled_the_model_is_the_bare_model_to_the_last_bit(kind, model):
    made, bare = batch(kind), kind.model()
    expected = bare(**made).logits
    with model.disable_adapter():
        assert torch.equal(model(**made).logits, expected)
    assert not torch.equal(model(**made).logits, expected)


def test_rows_of_a_single_token_work(kind, model):
    made = batch(kind, rows=2, tokens=4)
    made["attention_mask"] = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 1]])
    logits = model(**made).logits
    own = row(made, 0)
    assert own["input_ids"].shape == (1, 1)
    expected = model(**own).logits
    assert torch.isfinite(expected).all()
    assert_close(attended(kind, made, logits, 0), expected, **CLOSE)


def test_without_an_attention_mask_every_token_is_attended(kind, model):
    made = batch(kind)
    made["attention_mask"].fill_(1)
    expected, routes = model(**made).logits, model.last_routes
    del made["attention_mask"]
    assert_close(model(**made).logits, expected, **CLOSE)
    assert torch.equal(model.last_routes.indices, routes.indices)


def test_boolean_masks_mean_the_same_as_whole_numbers(kind, model):
    made = batch(kind)
    expected = model(**made).logits
    made["attention_mask"] = made["attention_mask"].bool()
    assert torch.equal(model(**made).logits, expected)


def test_embeddings_given_in_place_of_ids_give_the_same(kind, model):
    made = batch(kind)
    expected = model(**made).logits
    made["inputs_embeds"] = model.get_input_embeddings()(made.pop("input_ids"))
    assert_close(model(**made).logits, expected)


def test_arguments_may_be_given_by_position(kind, model):
    made = batch(kind)
    expected = model(**made).logits
    ids = made.pop("input_ids")
    assert torch.equal(model(ids, **made).logits, expected)
    assert torch.equal(model.get_base_model()(ids, **made).logits, expected)


def test_a_call_of_the_wrapped_model_itself_sees_the_prompt_as_well(kind, model):
    made = batch(kind)
    expected = model(**made).logits
    assert torch.equal(model.get_base_model()(**made).logits, expected)


@pytest.mark.parametrize("name", WITHOUT_DECODER)
def test_all_hidden_states_cover_the_tokens_alone_and_are_those_behind_the_prompt(name):
    kind = KINDS[name]
    model, bare = adapted(kind), kind.model()
    made = row(batch(kind, rows=1), 0)
    _, _, x = alone(bare, model.smop_layer, made)
    expected = bare(inputs_embeds=x, output_hidden_states=True).hidden_states
    found = model(**made, output_hidden_states=True).hidden_states
    assert len(found) == len(expected)
    for mine, whole in zip(found, expected, strict=True):
        assert mine.shape[1] == made["input_ids"].shape[1]
        assert_close(mine, whole[:, 5:], **CLOSE)


def flat(output):
    """All tensors of an output, in order."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, (tuple, list)):
        return [tensor for part in output for tensor in flat(part)]
    return []


@pytest.mark.parametrize("attentions", [False, True], ids=["states", "states-and-attentions"])
def test_a_tuple_holds_what_the_named_output_holds(kind, model, attentions):
    options = {"output_hidden_states": True, "output_attentions": attentions}
    base = model.get_base_model()
    before = base.config._attn_implementation
    base.set_attn_implementation("eager")  # the only one that returns attentions
    try:
        made = batch(kind)
        named = model(**made, **options)
        plain = model(**made, **options, return_dict=False)
    finally:
        base.set_attn_implementation(before)
    assert isinstance(plain, tuple)
    expected = flat(named.to_tuple())
    assert len(flat(plain)) == len(expected)
    for one, other in zip(flat(plain), expected, strict=True):
        assert torch.equal(one, other)


def test_an_encoder_s_states_keep_the_prompt_because_the_decoder_reads_it():
    kind = KINDS["t5"]
    output = adapted(kind)(**batch(kind), output_hidden_states=True)
    assert output.encoder_last_hidden_state.shape[1] == 7 + 5
    assert {state.shape[1] for state in output.encoder_hidden_states} == {7 + 5}
    assert {state.shape[1] for state in output.decoder_hidden_states} == {3}


FEATURES = {
    "bert": lambda: BertModel(BertConfig(vocab_size=VOCABULARY, **_small())),
    "bert without a pooler": lambda: BertModel(
        BertConfig(vocab_size=VOCABULARY, **_small()), add_pooling_layer=False
    ),
    "t5 encoder": lambda: T5EncoderModel(
        T5Config(vocab_size=VOCABULARY, d_model=WIDTH, d_ff=64, num_layers=2, num_heads=4, d_kv=8)
    ),
    "llama": lambda: LlamaModel(LlamaConfig(vocab_size=VOCABULARY, **_small())),
}


def _small():
    return {
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }


@pytest.mark.parametrize("name", FEATURES)
def test_feature_extraction_returns_the_tokens_features(name):
    def build():
        torch.manual_seed(0)
        return FEATURES[name]().eval()

    bare = build()
    model = decided(get_peft_model(build(), SMoPConfig(task_type="FEATURE_EXTRACTION")))
    made = batch(KINDS["t5"])
    del made["labels"]
    output = model(**made)
    assert output.last_hidden_state.shape == (4, 7, WIDTH)
    for i in range(4):
        own = row(made, i)
        _, _, x = alone(bare, model.smop_layer, own)
        expected = bare(inputs_embeds=x).last_hidden_state[:, 5:]
        keep = made["attention_mask"][i].bool()
        assert_close(output.last_hidden_state[i : i + 1, keep], expected, **CLOSE)
        if output.get("pooler_output") is not None and keep[0]:
            assert_close(output.pooler_output[i : i + 1], bare.pooler(expected), **CLOSE)


@pytest.mark.parametrize("attentions", [False, True], ids=["states", "states-and-attentions"])
@pytest.mark.parametrize("name", FEATURES)
def test_feature_extraction_as_a_tuple_is_the_same(name, attentions):
    torch.manual_seed(0)
    bare = FEATURES[name]().eval()
    bare.set_attn_implementation("eager")
    model = get_peft_model(bare, SMoPConfig(task_type="FEATURE_EXTRACTION"))
    made = batch(KINDS["t5"])
    del made["labels"]
    options = {"output_hidden_states": True, "output_attentions": attentions}
    named = model(**made, **options)
    plain = model(**made, **options, return_dict=False)
    expected = flat(named.to_tuple())
    assert len(flat(plain)) == len(expected)
    for one, other in zip(flat(plain), expected, strict=True):
        assert torch.equal(one, other)
    assert {state.shape[1] for state in named.hidden_states} == {7}


def test_a_model_configured_to_return_tuples_drops_the_prompt_everywhere():
    kind = KINDS["bert"]
    torch.manual_seed(0)
    config = BertConfig(vocab_size=VOCABULARY, **_small(), return_dict=False)
    config.output_hidden_states = True
    model = get_peft_model(
        BertForTokenClassification(config).eval(), SMoPConfig(task_type="TOKEN_CLS")
    )
    logits, states = model.get_base_model()(**batch(kind))
    assert logits.shape[1] == 7
    assert {state.shape[1] for state in states} == {7}


def test_token_classification_labels_every_token_and_needs_no_padded_labels():
    torch.manual_seed(0)
    bare = BertForTokenClassification(BertConfig(vocab_size=VOCABULARY, **_small())).eval()
    model = decided(get_peft_model(bare, SMoPConfig(task_type="TOKEN_CLS")))
    made = batch(KINDS["bert"])
    labels = torch.randint(0, 2, (4, 7))
    output = model(**made, labels=labels)
    assert output.logits.shape == (4, 7, 2)
    expected = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), labels.flatten())
    assert_close(output.loss, expected)


def test_question_answering_marks_spans_among_the_tokens():
    torch.manual_seed(0)
    bare = BertForQuestionAnswering(BertConfig(vocab_size=VOCABULARY, **_small())).eval()
    model = decided(get_peft_model(bare, SMoPConfig(task_type="QUESTION_ANS")))
    made = batch(KINDS["bert"])
    ends = {"start_positions": torch.tensor([0, 1, 3, 2]), "end_positions": torch.tensor([6] * 4)}
    output = model(**made, **ends)
    assert output.start_logits.shape == output.end_logits.shape == (4, 7)
    expected = sum(
        torch.nn.functional.cross_entropy(logits, ends[key])
        for logits, key in [
            (output.start_logits, "start_positions"),
            (output.end_logits, "end_positions"),
        ]
    )
    assert_close(output.loss, expected / 2)


def test_token_types_are_those_of_the_tokens_and_0_for_the_prompt():
    kind = KINDS["bert"]
    model, bare = adapted(kind), kind.model()
    bare.classifier = model.get_base_model().classifier.modules_to_save["default"]
    made = row(batch(kind), 0)
    types = torch.tensor([[0, 0, 0, 1, 1, 1, 1]])
    _, _, x = alone(bare, model.smop_layer, made)
    states = bare.bert(
        inputs_embeds=x, token_type_ids=torch.cat([torch.zeros(1, 5, dtype=int), types], dim=1)
    ).last_hidden_state
    expected = bare.classifier(bare.bert.pooler(states[:, 5:]))
    assert_close(model(**made, token_type_ids=types).logits, expected, **CLOSE)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3", "gpt2", "opt", "bert"])
def test_positions_given_for_the_tokens_are_shifted_by_the_prompt(name):
    kind = KINDS[name]
    model, bare = adapted(kind), kind.model()
    if kind.task_type == "SEQ_CLS":
        bare.classifier = model.get_base_model().classifier.modules_to_save["default"]
    made = row(batch(kind), 0)
    positions = torch.arange(7)[None] * 2
    _, _, x = alone(bare, model.smop_layer, made)
    shifted = torch.cat([torch.arange(5)[None], positions + 5], dim=1)
    if kind.task_type == "SEQ_CLS":
        states = bare.bert(inputs_embeds=x, position_ids=shifted).last_hidden_state[:, 5:]
        expected = bare.classifier(bare.bert.pooler(states))
    else:
        ones = torch.ones(shifted.shape, dtype=int)
        expected = bare(inputs_embeds=x, attention_mask=ones, position_ids=shifted).logits[:, 5:]
    assert_close(model(**made, position_ids=positions).logits, expected, **CLOSE)
