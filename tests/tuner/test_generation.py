"""Generation: the prompt is there from the first token to the last, and decided once."""

import pytest
import torch
from peft import get_peft_model
from torch.testing import assert_close
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    StaticCache,
)
from transformers.modeling_outputs import BaseModelOutput

from peft_smop import SMoPConfig
from peft_smop.errors import ConfigError, PromptIgnoredError
from peft_smop.tuner import deciding as prepared
from tiny import GENERATORS, KINDS, VOCABULARY, WIDTH, adapted, batch, decided, row

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
NEW = 4
GREEDY = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
BEAMS = {**GREEDY, "num_beams": 2, "num_return_sequences": 2}
SAMPLES = {**GREEDY, "do_sample": True, "num_return_sequences": 2}
MODES = {"greedy": GREEDY, "beams": BEAMS, "samples": SAMPLES}
DECODERS = [name for name in GENERATORS if KINDS[name].task_type == "CAUSAL_LM"]


@pytest.fixture(scope="module", params=GENERATORS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    return adapted(KINDS[name])


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def inputs(name, rows=4):
    made = batch(KINDS[name], rows=rows)
    made.pop("labels", None)
    if KINDS[name].task_type == "CAUSAL_LM":  # generation goes on at the right end
        made["attention_mask"][1:2] = 1
    return made


def generated(model, made, **options):
    """What was generated, without the input that a causal LM repeats; and the logits."""
    torch.manual_seed(0)
    out = model.generate(**made, **options, return_dict_in_generate=True, output_logits=True)
    new = out.sequences
    if not model.config.is_encoder_decoder:
        new = new[:, made["input_ids"].shape[1] :]
    return new, torch.stack(out.logits, dim=1)


class Chosen(LogitsProcessor):
    """Forces the same tokens on two generations, so that their logits can be compared."""

    def __init__(self, tokens):
        self.tokens, self.step = tokens, 0

    def __call__(self, input_ids, scores):
        forced = torch.full_like(scores, float("-inf"))
        forced.scatter_(1, self.tokens[:, self.step : self.step + 1], 0.0)
        self.step += 1
        return forced


def forced(rows: int, length: int = NEW):
    tokens = torch.randint(
        3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(8)
    )
    return LogitsProcessorList([Chosen(tokens)]), tokens


@pytest.mark.parametrize("mode", ["greedy", "beams"])  # sampling draws for the whole batch at once
def test_a_batch_generates_what_its_rows_generate_alone(name, model, mode):
    made = inputs(name)
    whole, _ = generated(model, made, **MODES[mode])
    repeats = len(whole) // 4
    for i in range(4):
        own = row(made, i)
        single, _ = generated(model, own, **MODES[mode])
        assert torch.equal(single, whole[i * repeats : (i + 1) * repeats])


@pytest.mark.parametrize("mode", MODES)
def test_with_and_without_a_cache_the_same_comes_out(name, model, mode):
    made = inputs(name)
    with_cache, logits = generated(model, made, **MODES[mode])
    without, again = generated(model, made, **MODES[mode], use_cache=False)
    assert torch.equal(with_cache, without)
    assert_close(again, logits, **CLOSE)


def test_every_step_is_the_full_forward_with_the_route_of_the_input(name, model):
    """Causal LMs route on the context, which labels mark; encoder-decoders on the input anyway."""
    made = inputs(name)
    processors, tokens = forced(4)
    _, logits = generated(model, made, **GREEDY, logits_processor=processors)
    routes = model.last_routes
    if model.config.is_encoder_decoder:
        start = torch.full((4, 1), model.config.decoder_start_token_id)
        if name == "bart":  # generation of BART starts from its configured token as well
            start.fill_(model.generation_config.decoder_start_token_id)
        expected = model(**made, decoder_input_ids=torch.cat([start, tokens], 1)).logits[:, :-1]
    else:
        ids = torch.cat([made["input_ids"], tokens], dim=1)
        mask = torch.cat([made["attention_mask"], torch.ones_like(tokens)], dim=1)
        labels = torch.cat([torch.full_like(made["input_ids"], -100), tokens], dim=1)
        expected = model(input_ids=ids, attention_mask=mask, labels=labels).logits[:, 6:-1]
    assert torch.equal(model.last_routes.indices, routes.indices)
    assert_close(logits, expected, **CLOSE)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_one_generation_is_one_routing_decision(name, model, mode, cached, monkeypatch):
    """Seen from outside: it equals the decision on the input; and in training mode, too, the
    prompts are computed once."""
    made = inputs(name)
    decoder = {"decoder_input_ids": made["input_ids"]} if model.config.is_encoder_decoder else {}
    model(**made, **decoder)
    expected = model.last_routes
    generated(model, made, **MODES[mode], use_cache=cached)
    found = model.last_routes
    repeats = len(found.indices) // 4
    assert torch.equal(found.indices, expected.indices.repeat_interleave(repeats, dim=0))
    assert_close(found.probabilities, expected.probabilities.repeat_interleave(repeats, dim=0))
    decided, original = [], prepared.soft_prompts
    monkeypatch.setattr(
        prepared, "soft_prompts", lambda *a, **k: decided.append(1) or original(*a, **k)
    )
    model.train()
    try:
        generated(model, made, **MODES[mode], use_cache=cached)
    finally:
        model.eval()
    assert len(decided) == 1


@pytest.mark.parametrize(
    "name", [name for name in GENERATORS if KINDS[name].left_padding_harmless], indirect=True
)
def test_left_padding_changes_nothing_that_is_generated(name, model):
    made = inputs(name)
    processors, _ = forced(4)
    _, logits = generated(model, made, **GREEDY, logits_processor=processors)
    more = {
        key: torch.nn.functional.pad(value, (4, 0), value=9 if key == "input_ids" else 0)
        for key, value in made.items()
    }
    processors, _ = forced(4)
    _, again = generated(model, more, **GREEDY, logits_processor=processors)
    assert_close(again, logits, **CLOSE)


def test_generation_without_an_attention_mask_attends_everything(name, model):
    made = inputs(name)
    made["input_ids"] = made["input_ids"].clamp(min=3)  # no padding token among them
    made["attention_mask"].fill_(1)
    expected, _ = generated(model, made, **GREEDY)
    del made["attention_mask"]
    assert torch.equal(generated(model, made, **GREEDY)[0], expected)


@pytest.mark.parametrize("one", DECODERS)
def test_generation_from_embeddings_is_generation_from_ids(one):
    model, made = adapted(KINDS[one]), inputs(one)
    expected, _ = generated(model, made, **GREEDY)
    x = model.get_input_embeddings()(made["input_ids"])
    found = model.generate(inputs_embeds=x, attention_mask=made["attention_mask"], **GREEDY)
    assert torch.equal(found[:, -NEW:], expected)


@pytest.mark.parametrize("mode", ["greedy", "beams"])
def test_mixed_rows_under_beams_generate_what_they_generate_alone(name, mode):
    kind = KINDS[name]
    model = adapted(kind, num_virtual_tokens=5)
    for adapter, length, seed in (("short", 2, 1), ("other", 5, 2)):
        config = SMoPConfig(task_type=kind.task_type, num_virtual_tokens=length, num_prompts=3)
        model.add_adapter(adapter, config)
        decided(model, adapter, seed=seed)
    made, bare = inputs(name), kind.model()
    names = ["other", "__base__", "short", "default"]
    whole, _ = generated(model, made, adapter_names=names, **MODES[mode])
    uncached, _ = generated(model, made, adapter_names=names, use_cache=False, **MODES[mode])
    assert torch.equal(whole, uncached)
    repeats = len(whole) // 4
    for i, adapter in enumerate(names):
        own = row(made, i)
        if adapter == "__base__":
            expected, _ = generated(bare, own, **MODES[mode])
        else:
            model.set_adapter(adapter)
            expected, _ = generated(model, own, **MODES[mode])
        assert torch.equal(whole[i * repeats : (i + 1) * repeats], expected)


@pytest.mark.parametrize("mode", ["greedy", "beams"])
def test_under_beams_each_row_keeps_the_output_layer_that_its_adapter_trained(mode):
    kind = KINDS["llama"]
    model = adapted(kind, adapter="a", modules_to_save=["lm_head"])
    model.add_adapter("b", SMoPConfig(task_type=kind.task_type, modules_to_save=["lm_head"]))
    decided(model, "b", seed=2)
    generator = torch.Generator().manual_seed(6)
    heads = model.get_base_model().lm_head.modules_to_save
    for head in heads.values():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator))
    made, names = inputs("llama"), ["b", "a", "b", "__base__"]
    whole, _ = generated(model, made, adapter_names=names, **MODES[mode])
    repeats = len(whole) // 4
    for i, adapter in enumerate(names):
        own = row(made, i)
        if adapter == "__base__":
            expected, _ = generated(kind.model(), own, **MODES[mode])
        else:
            model.set_adapter(adapter)
            expected, _ = generated(model, own, **MODES[mode])
        assert torch.equal(whole[i * repeats : (i + 1) * repeats], expected)


def test_the_bare_model_generates_when_the_adapter_is_disabled(name, model):
    made = inputs(name)
    expected, logits = generated(KINDS[name].model(), made, **GREEDY)
    with model.disable_adapter():
        found, again = generated(model, made, **GREEDY)
    assert torch.equal(found, expected)
    # PEFT wraps the preparation of inputs, which moves the last bit; with LoRA as well
    assert_close(again, logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("masked", [True, False], ids=["mask", "no mask"])
@pytest.mark.parametrize("one", DECODERS)
def test_decoding_by_hand_from_the_returned_cache_is_the_full_forward(one, masked):
    model, made = adapted(KINDS[one]), inputs(one)
    if not masked:
        made["attention_mask"].fill_(1)
    new = torch.randint(3, VOCABULARY, (4, 3), generator=torch.Generator().manual_seed(2))
    ids = torch.cat([made["input_ids"], new], dim=1)
    mask = torch.cat([made["attention_mask"], torch.ones_like(new)], dim=1)
    labels = torch.cat([torch.full_like(made["input_ids"], -100), new], dim=1)
    expected = model(input_ids=ids, attention_mask=mask, labels=labels).logits

    def given(end):
        return {"attention_mask": mask[:, :end]} if masked else {}

    output = model(input_ids=made["input_ids"], **given(7), use_cache=True)
    found = [output.logits[:, -1:]]
    for start, end in ((7, 8), (8, 10)):  # one token, then two at once
        output = model(
            input_ids=ids[:, start:end], **given(end), past_key_values=output.past_key_values
        )
        assert output.logits.shape[1] == end - start
        found.append(output.logits)
    assert_close(torch.cat(found, dim=1), expected[:, 6:], **CLOSE)


def test_decoding_by_hand_works_on_an_encoder_decoder():
    model, made = adapted(KINDS["t5"]), inputs("t5")
    decoder_ids = torch.randint(3, VOCABULARY, (4, 3), generator=torch.Generator().manual_seed(2))
    expected = model(**made, decoder_input_ids=decoder_ids).logits
    output = model(**made, decoder_input_ids=decoder_ids[:, :1], use_cache=True)
    found = [output.logits]
    for i in (1, 2):
        output = model(
            encoder_outputs=BaseModelOutput(output.encoder_last_hidden_state),
            attention_mask=made["attention_mask"],
            decoder_input_ids=decoder_ids[:, i : i + 1],
            past_key_values=output.past_key_values,
        )
        found.append(output.logits)
    assert_close(torch.cat(found, dim=1), expected, **CLOSE)


@pytest.mark.parametrize("one", DECODERS)
def test_a_cache_that_was_filled_without_the_prompt_is_refused(one):
    model, made = adapted(KINDS[one]), inputs(one)
    with model.disable_adapter():
        cache = model(**made, use_cache=True).past_key_values
    mask = torch.ones(4, 8, dtype=torch.int64)
    with pytest.raises(PromptIgnoredError, match="filled without the soft prompt"):
        model(input_ids=made["input_ids"][:, :1], attention_mask=mask, past_key_values=cache)
    # the bare model goes on with it
    with model.disable_adapter():
        model(input_ids=made["input_ids"][:, :1], attention_mask=mask, past_key_values=cache)


def test_the_cache_of_an_adapter_with_another_length_is_refused():
    kind = KINDS["llama"]
    model, made = adapted(kind), inputs("llama")
    model.add_adapter("short", SMoPConfig(task_type=kind.task_type, num_virtual_tokens=2))
    decided(model, "short")
    cache = model(**made, use_cache=True).past_key_values
    mask = torch.cat([made["attention_mask"], torch.ones(4, 1, dtype=torch.int64)], dim=1)
    model.set_adapter("short")
    with pytest.raises((ConfigError, PromptIgnoredError)):
        model(input_ids=made["input_ids"][:, :1], attention_mask=mask, past_key_values=cache)


@pytest.mark.parametrize("new", [2, 5, 9], ids=lambda n: f"{n} new tokens")
@pytest.mark.parametrize("one", ["llama", "gpt2"])
def test_a_second_turn_goes_on_rightly_from_the_first_one_s_cache_or_is_refused(one, new):
    model = adapted(KINDS[one], routing="single")
    made = row(inputs(one), 0)
    first = model.generate(**made, **GREEDY, return_dict_in_generate=True)
    more = torch.randint(3, VOCABULARY, (1, new), generator=torch.Generator().manual_seed(2))
    ids = torch.cat([first.sequences, more], dim=1)
    turn = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    processors, _ = forced(1)
    _, expected = generated(model, turn, **GREEDY, logits_processor=processors)
    processors, _ = forced(1)
    try:
        _, found = generated(
            model,
            turn,
            past_key_values=first.past_key_values,
            logits_processor=processors,
            **GREEDY,
        )
    except (ConfigError, PromptIgnoredError):
        return
    assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("one", ["t5", "bart"])
def test_encoder_outputs_computed_through_the_model_s_encoder_hold_the_prompt(one):
    model, made = adapted(KINDS[one]), inputs(one)
    expected, _ = generated(model, made, **GREEDY)
    states = model.get_encoder()(**made)
    assert states.last_hidden_state.shape[1] == 7 + 5
    found = model.generate(encoder_outputs=states, attention_mask=made["attention_mask"], **GREEDY)
    assert torch.equal(found, expected)
    labels = made["input_ids"][:, :3].contiguous()
    assert_close(
        model(encoder_outputs=states, attention_mask=made["attention_mask"], labels=labels).logits,
        model(**made, labels=labels).logits,
    )


def test_encoder_outputs_as_a_bare_tensor_are_refused():
    model, made = adapted(KINDS["t5"]), inputs("t5")
    states = model.get_encoder()(**made).last_hidden_state
    given = {"attention_mask": made["attention_mask"], "decoder_input_ids": made["input_ids"]}
    with pytest.raises(ConfigError, match=r"BaseModelOutput\(last_hidden_state"):
        model(encoder_outputs=states, **given)


@pytest.mark.parametrize("masked", [True, False], ids=["mask", "no mask"])
@pytest.mark.parametrize("how", ["forward", "generate"])
def test_encoder_outputs_computed_with_the_adapter_disabled_are_refused(how, masked):
    model, made = adapted(KINDS["t5"]), inputs("t5")
    with model.disable_adapter():
        states = model.get_encoder()(**made)
    given = {"attention_mask": made["attention_mask"]} if masked else {}
    run, more = {
        "forward": (model, {"decoder_input_ids": made["input_ids"][:, :3]}),
        "generate": (model.generate, GREEDY),
    }[how]
    with pytest.raises(PromptIgnoredError, match=r"without (this adapter|an attention_mask)"):
        run(encoder_outputs=states, **given, **more)


REFUSED = {
    "a static cache": ({"cache_implementation": "static"}, "cache"),
    "a chunked prefill": ({"prefill_chunk_size": 2}, "prefill_chunk_size"),
    "prompt lookup": ({"prompt_lookup_num_tokens": 2}, "prompt_lookup_num_tokens"),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("one", ["llama", "gpt2", "gemma3"])
def test_generation_with_no_room_for_a_prompt_is_refused(one, what):
    options, message = REFUSED[what]
    model, made = adapted(KINDS[one]), inputs(one, rows=1)
    with pytest.raises(ConfigError, match=message):
        model.generate(**made, **GREEDY, **options)
    with pytest.raises(ConfigError, match=message):
        model.generate(**made, generation_config=GenerationConfig(**GREEDY, **options))
    model.generate(**made, **GREEDY)  # and the refusal leaves nothing behind


def test_a_static_cache_is_refused_in_a_forward_as_well():
    model, made = adapted(KINDS["llama"]), inputs("llama", rows=1)
    cache = StaticCache(config=model.config, max_cache_len=16)
    mask = torch.ones(1, 1, 7, 16, dtype=torch.bool)
    with pytest.raises(ConfigError, match="static caches"):
        model(input_ids=made["input_ids"], attention_mask=mask, past_key_values=cache)


def test_a_static_cache_of_an_encoder_decoder_s_decoder_has_no_prompt_in_it_and_works():
    model, made = adapted(KINDS["t5"]), inputs("t5")
    expected, logits = generated(model, made, **GREEDY)
    found, again = generated(model, made, **GREEDY, cache_implementation="static")
    assert torch.equal(found, expected)
    assert_close(again, logits, **CLOSE)


def test_assisted_generation_is_refused():
    model, made = adapted(KINDS["llama"]), inputs("llama", rows=1)
    with pytest.raises(ConfigError, match="assistant_model"):
        model.generate(**made, **GREEDY, assistant_model=KINDS["llama"].model())


def test_what_is_refused_with_an_adapter_works_with_the_adapter_disabled():
    model, made = adapted(KINDS["llama"]), inputs("llama", rows=1)
    expected = KINDS["llama"].model().generate(**made, **GREEDY)
    for options in ({"prefill_chunk_size": 2}, {"prompt_lookup_num_tokens": 2}):
        with model.disable_adapter():
            assert torch.equal(model.generate(**made, **GREEDY, **options), expected)


class Shortcut(LlamaForCausalLM):
    """A model whose forward goes round the hooks of the part that reads the embeddings."""

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        states = type(self.model).forward(self.model, input_ids, attention_mask)
        return self.lm_head(states.last_hidden_state)


def test_a_pass_that_never_showed_the_prompt_to_the_backbone_is_an_error():
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
    )
    bare = Shortcut(config).eval()
    made = inputs("llama")
    expected = bare(**made)
    model = get_peft_model(bare, SMoPConfig(task_type="CAUSAL_LM"))
    with pytest.raises(PromptIgnoredError, match="without calling its backbone"):
        model(**made)
    # without a prompt there is nothing to ignore
    with model.disable_adapter():
        assert torch.equal(model(**made), expected)
