"""What an engine is sent is what the adapted model gives its backbone, to the last bit."""

import base64
import io

import pytest
import torch
from endpoint import completions_endpoint
from exporting import TEXTS, save
from safetensors.torch import load_file, save_file

from peft_smop import Predictor
from peft_smop.errors import CheckpointError, ConfigError, RunError
from peft_smop.export import PromptedTexts, as_base64, export
from peft_smop.methods import load_backbone
from peft_smop.tuner.strategies import STRATEGIES

ROUTINGS = [
    *({"routing": name} for name in STRATEGIES),
    {"routing": "linear", "top_k": 2, "num_prompts": 5},
    {"routing": "linear", "temperature": 2.0, "final_temperature": 0.5, "annealing_steps": 3},
    {"routing": "fixed", "fixed_prompt": 2},
    {"routing": "linear", "router_scope": 2},
    {"routing": "linear", "parameterisation": "low-rank", "rank": 3},
    {"routing": "linear", "parameterisation": "residual"},
]


def given_to_the_backbone(model, batch):
    """The embeddings with which the adapted model calls its backbone."""
    seen = []
    backbone = model.base_model.smop_layer.hooks.backbone.module
    mark = backbone.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        model(**batch)
    mark.remove()
    return seen[0][0]


@pytest.mark.parametrize("position", ["before", "after"])
@pytest.mark.parametrize("options", ROUTINGS, ids=str)
def test_embeddings_equal_the_model_s_to_the_last_bit(saved_models, tmp_path, options, position):
    adapter = save(saved_models["llama"], tmp_path / "a", position=position, **options)
    export(adapter, tmp_path / "out", format="vllm")
    texts, predictor = PromptedTexts.load(tmp_path / "out"), Predictor.load(adapter)
    chosen = set()
    for text in TEXTS:
        ids = torch.tensor([texts.tokens(text)])
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        expected = given_to_the_backbone(predictor.model, batch)
        found = texts.prompted(text)
        assert torch.equal(found.embeddings, expected)
        assert found.prompt == int(predictor.model.last_routes.chosen[0])
        chosen.add(found.prompt)
    if options == {"routing": "linear"}:
        assert len(chosen) > 1  # the router has something to decide


@pytest.mark.parametrize("position", ["before", "after"])
def test_the_bare_model_writes_from_them_what_the_adapted_one_writes(
    saved_models, tmp_path, position
):
    adapter = save(saved_models["llama"], tmp_path / "a", position=position)
    export(adapter, tmp_path / "out", format="llama.cpp")
    texts, predictor = PromptedTexts.load(tmp_path / "out"), Predictor.load(adapter)
    bare = load_backbone(saved_models["llama"], labels=2, device=torch.device("cpu"), dtype="fp32")
    greedy = {"max_new_tokens": 12, "do_sample": False}
    for text in TEXTS:
        expected = predictor.generate([text], **greedy)[0]
        x = texts.prompted(text).embeddings[None]
        mask = torch.ones(x.shape[:2], dtype=torch.long)
        ids = bare.model.generate(inputs_embeds=x, attention_mask=mask, **greedy)
        assert bare.tokenizer.decode(ids[0], skip_special_tokens=True) == expected
        assert expected


def test_a_table_that_the_model_scales_is_exported_scaled(tmp_path, saved_models):
    # Gemma multiplies its embeddings by the root of their width
    import tiny
    from saved import save as save_model

    place = save_model(
        tiny.KINDS["gemma3"], tmp_path / "gemma", texts=[*TEXTS, "warm cold answer:"]
    )
    adapter = save(str(place), tmp_path / "a")
    export(adapter, tmp_path / "out", format="vllm")
    texts = PromptedTexts.load(tmp_path / "out")
    ids = torch.tensor([texts.tokens(TEXTS[0])])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    expected = given_to_the_backbone(Predictor.load(adapter).model, batch)
    assert torch.equal(texts.prompted(TEXTS[0]).embeddings, expected)


def test_a_tensor_in_base64_is_read_back_as_vllm_reads_it():
    sent = torch.randn(7, 5, dtype=torch.bfloat16)
    raw = base64.b64decode(as_base64(sent), validate=True)
    read = torch.load(io.BytesIO(raw), weights_only=True, map_location="cpu")
    assert read.dtype == torch.bfloat16
    assert torch.equal(read, sent)
    # a view into a large table is sent without the table
    assert len(as_base64(torch.zeros(100_000, 5)[:7])) < 4_000


def test_the_client_sends_them_to_the_completions_endpoint(saved_models, tmp_path):
    openai = pytest.importorskip("openai", reason="the client is the openai package's")
    export(save(saved_models["llama"], tmp_path / "a"), tmp_path / "out", format="vllm")
    texts = PromptedTexts.load(tmp_path / "out")
    with (
        completions_endpoint(" warm") as (place, requests),
        openai.OpenAI(base_url=place, api_key="none") as client,
    ):
        assert texts.complete(client, "m", TEXTS[0], max_tokens=3) == " warm"
    ((path, body),) = requests
    assert path == "/v1/completions"
    assert (body["model"], body["prompt"], body["max_tokens"]) == ("m", "", 3)
    raw = base64.b64decode(body["prompt_embeds"], validate=True)
    read = torch.load(io.BytesIO(raw), weights_only=True)
    assert torch.equal(read, texts.prompted(TEXTS[0]).embeddings)


def test_what_cannot_be_exported_is_one_sentence_and_leaves_nothing(saved_models, tmp_path):
    adapter = save(saved_models["t5"], tmp_path / "a")
    with pytest.raises(ConfigError, match=r"no decoder .*use --format onnx"):
        export(adapter, tmp_path / "out", format="vllm")
    with pytest.raises(ConfigError, match="did you mean onnx"):
        export(adapter, tmp_path / "out", format="onx")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    with pytest.raises(RunError, match="not an empty directory"):
        export(adapter, tmp_path / "a", format="onnx")


def test_an_altered_export_is_not_believed(saved_models, tmp_path):
    export(save(saved_models["llama"], tmp_path / "a"), tmp_path / "out", format="vllm")
    path = tmp_path / "out" / "embeddings.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "prompts": tensors["prompts"] + 1}, path)
    with pytest.raises(CheckpointError, match="not as it was exported"):
        PromptedTexts.load(tmp_path / "out")


def test_every_format_that_is_told_of_can_be_written():
    from peft_smop.export import WRITERS
    from peft_smop.names import FORMATS

    assert list(WRITERS) == list(FORMATS)


def test_the_command_says_what_it_wrote(saved_models, tmp_path, smop):
    adapter = save(saved_models["llama"], tmp_path / "a")
    code, out, _ = smop("export", adapter, "-o", tmp_path / "out", "--format", "vllm")
    assert code == 0
    assert "embeddings.safetensors" in out
    code, _, err = smop("export", adapter, "-o", tmp_path / "out", "--format", "vllm")
    assert code == 2
    assert "is not an empty directory" in err
