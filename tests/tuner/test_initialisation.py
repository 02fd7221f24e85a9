"""Where prompts and routers start."""

import shutil

import pytest
import torch
from peft import PeftModel, PromptTuningConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch.testing import assert_close
from transformers import PreTrainedTokenizerFast

from peft_smop import SMoPConfig
from peft_smop.errors import CheckpointError, ConfigError
from tiny import KINDS, VOCABULARY, WIDTH, adapted, batch

WORDS = ["true", "false", "is", "the", "claim", "so"]
IDS = {word: 10 + i for i, word in enumerate(WORDS)}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Six words, and a beginning and an end that an encoded text would be given."""
    from tokenizers.processors import TemplateProcessing

    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, **IDS}
    made = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    path = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    ).save_pretrained(path)
    return str(path)


def start(name="t5", backbone=None, **options):
    """The prompts (k, l, e) and the router (e, k) of a new adapter, and the embedding."""
    kind = KINDS[name]
    model = get_peft_model(
        backbone or kind.model(), SMoPConfig(task_type=kind.task_type, **options)
    )
    layer = model.smop_layer
    router = layer["default"].router.detach() if layer["default"].router is not None else None
    return layer["default"].prompts.detach(), router, model.get_input_embeddings()


def looked_up(prompts, embedding):
    """Which token each virtual token is, if it is one."""
    table = embedding(torch.arange(VOCABULARY)).detach()
    equal = (prompts[:, :, None, :] == table).all(dim=-1)
    assert equal.any(dim=-1).all()
    return equal.float().argmax(dim=-1)


@pytest.mark.parametrize("name", KINDS)
def test_by_default_every_virtual_token_is_a_token_s_embedding_as_the_backbone_sees_it(name):
    """With the scale that Gemma and BART apply inside their embedding module."""
    prompts, _, embedding = start(name)
    assert prompts.shape == (4, 5, WIDTH)
    assert len(set(looked_up(prompts, embedding).flatten().tolist())) > 5


def test_special_tokens_are_never_drawn():
    backbone = KINDS["llama"].model()
    config = backbone.config
    # so many that chance could not avoid them
    config.pad_token_id, config.bos_token_id = 7, 8
    config.eos_token_id = list(range(10, 95))
    prompts, _, embedding = start("llama", backbone, num_prompts=10, num_virtual_tokens=20)
    drawn = set(looked_up(prompts, embedding).flatten().tolist())
    assert drawn == {0, 1, 2, 3, 4, 5, 6, 9, 95, 96, 97, 98, 99}


@pytest.mark.parametrize(
    "special", ["pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"]
)
def test_each_special_token_of_t5_is_left_out(special):
    backbone = KINDS["t5"].model()
    for key in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
        setattr(backbone.config, key, None)
    setattr(backbone.config, special, 42)
    prompts, _, embedding = start("t5", backbone, num_prompts=20, num_virtual_tokens=50)
    drawn = set(looked_up(prompts, embedding).flatten().tolist())
    assert drawn == set(range(100)) - {42}


def test_rows_of_the_embedding_that_are_all_equal_are_never_drawn():
    """Padding of the table up to a round size: rows without a token, all zero or all alike."""
    backbone = KINDS["t5"].model()
    with torch.no_grad():
        backbone.get_input_embeddings().weight[20:] = 0.25
    prompts, _, _ = start("t5", backbone, num_prompts=10, num_virtual_tokens=10)
    assert not (prompts == 0.25).all(dim=-1).any()


@pytest.mark.parametrize("init", ["vocabulary", "normal"])
def test_a_seed_repeats_its_start_and_another_one_does_not(init):
    first = start(init=init, seed=3)[:2]
    torch.manual_seed(99)  # the global state has no say
    again, other = start(init=init, seed=3)[:2], start(init=init, seed=4)[:2]
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_a_start_consumes_none_of_the_global_randomness():
    backbone = KINDS["t5"].model()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    start("t5", backbone)
    assert torch.equal(torch.rand(1), expected)


def test_normal_prompts_have_the_given_spread():
    prompts, _, _ = start(init="normal", init_std=0.3, num_prompts=20, num_virtual_tokens=50)
    assert abs(prompts.mean().item()) < 0.01
    assert abs(prompts.std().item() - 0.3) < 0.01


def test_the_router_starts_like_a_linear_layer_and_not_at_zero():
    """Uniform in ±1/sqrt(e), e = 32: a spread of 1/sqrt(3 · 32)."""
    _, router, _ = start(num_prompts=100)
    assert router.shape == (WIDTH, 100)
    assert router.abs().max().item() <= WIDTH**-0.5
    assert abs(router.std().item() - (3 * WIDTH) ** -0.5) < 0.003


def test_single_has_no_router():
    prompts, router, _ = start(routing="single", num_virtual_tokens=7)
    assert prompts.shape == (1, 7, WIDTH)
    assert router is None


def test_one_text_runs_on_through_all_prompts(tokenizer):
    prompts, _, embedding = start(
        init="text", init_text="is the claim true", num_prompts=2, num_virtual_tokens=3,
        tokenizer_name_or_path=tokenizer,
    )  # fmt: skip
    expected = [IDS[w] for w in ["is", "the", "claim", "true", "is", "the"]]
    assert looked_up(prompts, embedding).flatten().tolist() == expected


def test_a_text_for_each_prompt_is_repeated_or_cut(tokenizer):
    prompts, _, embedding = start(
        init="text", init_text=["true so", "is the claim false so"], num_prompts=2,
        num_virtual_tokens=3, tokenizer_name_or_path=tokenizer,
    )  # fmt: skip
    expected = [[IDS[w] for w in row] for row in (["true", "so", "true"], ["is", "the", "claim"])]
    assert looked_up(prompts, embedding).tolist() == expected


def test_labels_lead_each_prompt_in_turn_and_vocabulary_fills_the_rest(tokenizer):
    prompts, _, embedding = start(
        init="labels", init_labels=["true", "is so"], num_prompts=3, num_virtual_tokens=4,
        tokenizer_name_or_path=tokenizer,
    )  # fmt: skip
    one = embedding(torch.tensor(IDS["true"])).detach()
    two = embedding(torch.tensor([IDS["is"], IDS["so"]])).detach().mean(dim=0)
    for j, (first, second) in enumerate([(one, two), (two, one), (one, two)]):
        assert_close(prompts[j, 0], first)
        assert_close(prompts[j, 1], second)
    looked_up(prompts[:, 2:], embedding)


def test_more_labels_than_virtual_tokens_are_dealt_out_over_the_prompts(tokenizer):
    prompts, _, embedding = start(
        init="labels", init_labels=["true", "false", "so"], num_prompts=3, num_virtual_tokens=1,
        tokenizer_name_or_path=tokenizer,
    )  # fmt: skip
    expected = [[IDS["true"]], [IDS["false"]], [IDS["so"]]]
    assert looked_up(prompts, embedding).tolist() == expected


def test_the_tokenizer_beside_the_backbone_is_the_default(tokenizer, tmp_path):
    backbone = KINDS["t5"].model()
    shutil.copytree(tokenizer, tmp_path, dirs_exist_ok=True)
    backbone.name_or_path = str(tmp_path)
    prompts, _, embedding = start(
        "t5", backbone, init="text", init_text="so", num_prompts=1, num_virtual_tokens=1
    )
    assert looked_up(prompts, embedding).item() == IDS["so"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "text", "init_text": "so"}, "needs a tokenizer; set tokenizer_name_or_path"),
        ({"init": "text", "init_text": ["so", " "], "num_prompts": 2}, "' ' has no token"),
        ({"init": "text", "init_text": ["so", "is"]}, "has 2 texts; give one, or num_prompts=4"),
        ({"init": "labels", "init_labels": ["so", ""]}, "'' has no token"),
    ],
)
def test_texts_that_cannot_be_used_are_refused(options, message, tokenizer):
    if "needs a tokenizer" not in message:
        options = {**options, "tokenizer_name_or_path": tokenizer}
    with pytest.raises(ConfigError, match=message):
        start(**options)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize(
    "options", [{"init": "text", "init_text": "so is"}, {"init": "labels", "init_labels": ["so"]}]
)
def test_a_saved_adapter_never_needs_the_tokenizer_again(
    options, low_cpu_mem_usage, tokenizer, tmp_path
):
    elsewhere = tmp_path / "tokenizer"
    shutil.copytree(tokenizer, elsewhere)
    kind = KINDS["t5"]
    model = adapted(kind, tokenizer_name_or_path=str(elsewhere), **options)
    with torch.no_grad():
        expected = model(**batch(kind)).logits
    model.save_pretrained(tmp_path / "saved")
    shutil.rmtree(elsewhere)
    again = PeftModel.from_pretrained(
        kind.model(), tmp_path / "saved", low_cpu_mem_usage=low_cpu_mem_usage
    )
    with torch.no_grad():
        assert torch.equal(again.eval()(**batch(kind)).logits, expected)


def test_one_configuration_object_can_start_two_models_with_tokenizers_of_their_own(
    tokenizer, tmp_path
):
    """What the first one wrote into the configuration must not be believed of the second."""
    import json

    shutil.copytree(tokenizer, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"]["so"], content["model"]["vocab"]["is"] = IDS["is"], IDS["so"]
    file.write_text(json.dumps(content))
    config = SMoPConfig(
        task_type="SEQ_2_SEQ_LM", init="text", init_text="so", num_prompts=1, num_virtual_tokens=1
    )
    found = []
    for path in (tokenizer, str(tmp_path)):
        backbone = KINDS["t5"].model()
        backbone.name_or_path = path
        config.base_model_name_or_path = None  # PEFT's own note, about which it warns
        model = get_peft_model(backbone, config)
        prompts = model.smop_layer["default"].prompts.detach()
        found.append(looked_up(prompts, model.get_input_embeddings()).item())
    assert found == [IDS["so"], IDS["is"]]


# -- from an adapter ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A saved adapter of 4 prompts of 5, and its tensors."""
    path = tmp_path_factory.mktemp("source")
    model = adapted(KINDS["t5"])
    model.save_pretrained(path)
    layer = model.smop_layer
    return str(path), layer["default"].prompts.detach(), layer["default"].router.detach()


def test_an_adapter_starts_where_another_one_ended(source):
    path, expected, expected_router = source
    prompts, router, _ = start(init="adapter", init_adapter=path)
    assert torch.equal(prompts, expected)
    assert torch.equal(router, expected_router)


def test_prompts_of_another_number_and_length_are_repeated_and_cut(source):
    path, expected, _ = source
    with pytest.warns(UserWarning, match=r"router .* starts at random"):
        prompts, router, _ = start(
            init="adapter", init_adapter=path, num_prompts=6, num_virtual_tokens=7
        )
    assert torch.equal(prompts[:4, :5], expected)
    assert torch.equal(prompts[4:, :5], expected[:2])
    assert torch.equal(prompts[:4, 5:], expected[:, :2])
    assert router.shape == (WIDTH, 6)


def test_it_starts_from_peft_s_prompt_tuning_as_well(tmp_path):
    theirs = get_peft_model(
        KINDS["t5"].model(),
        PromptTuningConfig(
            task_type="SEQ_2_SEQ_LM", num_virtual_tokens=5, num_transformer_submodules=1
        ),
    )
    theirs.save_pretrained(tmp_path)
    expected = theirs.prompt_encoder["default"].embedding.weight.detach()
    for k, options in ((1, {"routing": "single"}), (4, {})):
        prompts, _, _ = start(init="adapter", init_adapter=str(tmp_path), **options)
        assert torch.equal(prompts, expected.expand(k, -1, -1))


def test_the_unused_second_half_of_peft_s_prompt_for_an_encoder_decoder_is_left(tmp_path):
    """PEFT allocates twice the rows for an encoder-decoder and uses the first half."""
    theirs = get_peft_model(
        KINDS["t5"].model(), PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3)
    )
    theirs.save_pretrained(tmp_path)
    rows = theirs.prompt_encoder["default"].embedding.weight.detach()
    assert rows.shape == (6, WIDTH)
    prompts, _, _ = start(
        init="adapter", init_adapter=str(tmp_path), routing="single", num_virtual_tokens=6
    )
    # the half that was trained, repeated; not rows that no gradient ever reached
    assert torch.equal(prompts[0], rows[:3].repeat(2, 1))


def test_an_adapter_for_another_width_is_refused(source, tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    narrow = T5ForConditionalGeneration(
        T5Config(vocab_size=100, d_model=16, d_ff=32, num_layers=1, num_heads=2, d_kv=8)
    )
    with pytest.raises(CheckpointError, match=r"width 32;.* 16 wide"):
        start("t5", narrow, init="adapter", init_adapter=source[0])


def test_a_source_that_is_missing_damaged_or_of_another_kind_is_refused(tmp_path):
    from peft import LoraConfig

    def refused(path, message):
        with pytest.raises(CheckpointError, match=message):
            start(init="adapter", init_adapter=str(path))

    refused(tmp_path / "nowhere", "does not exist")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "adapter_model.safetensors").write_bytes(b"not a tensor")
    refused(tmp_path / "damaged", "is damaged")
    lora = get_peft_model(
        KINDS["t5"].model(), LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=["q"])
    )
    lora.save_pretrained(tmp_path / "lora")
    refused(tmp_path / "lora", "holds no soft prompt")


@pytest.mark.parametrize("is_trainable", [False, True])
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_a_saved_adapter_never_needs_the_adapter_it_started_from(
    is_trainable, low_cpu_mem_usage, tmp_path
):
    kind = KINDS["t5"]
    adapted(kind).save_pretrained(tmp_path / "source")
    model = adapted(kind, init="adapter", init_adapter=str(tmp_path / "source"))
    with torch.no_grad():
        expected = model(**batch(kind)).logits
    model.save_pretrained(tmp_path / "saved")
    shutil.rmtree(tmp_path / "source")
    again = PeftModel.from_pretrained(
        kind.model(),
        tmp_path / "saved",
        is_trainable=is_trainable,
        low_cpu_mem_usage=low_cpu_mem_usage,
    )
    with torch.no_grad():
        assert torch.equal(again.eval()(**batch(kind)).logits, expected)
