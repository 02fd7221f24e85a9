"""ONNX graphs say what the model says, at any number of rows and tokens."""

import json

import jaxtyping
import numpy as np
import pytest
import torch
from exporting import TEXTS, save
from torch.testing import assert_close

import tiny
from peft_smop import Predictor
from peft_smop.errors import ConfigError, ExportError
from peft_smop.export import export, graphs

onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'peft-smop[export]'")
SHAPES = [(1, 1), (4, 3), (2, 17), (9, 30)]


@pytest.fixture(autouse=True, scope="module")
def _shapes_are_symbols():
    """While a model is traced its sizes are symbols, which the check of shapes takes for no int."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def rows(count, tokens, size, seed=0):
    """Random tokens of several lengths, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, size, (count, tokens), generator=generator)
    lengths = torch.randint(1, tokens + 1, (count, 1), generator=generator)
    mask = (torch.arange(tokens)[None] < lengths).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def said_by(path, **given):
    names = [one.name for one in session(path).get_outputs()]
    values = session(path).run(None, {key: value.numpy() for key, value in given.items()})
    return dict(zip(names, map(torch.from_numpy, values), strict=True))


def size_of(predictor):
    return predictor.model.get_input_embeddings().weight.shape[0]


@pytest.fixture(scope="module")
def encoder(saved_models, tmp_path_factory):
    """An adapter of an encoder, and what was exported of it."""
    folder = tmp_path_factory.mktemp("encoder")
    adapter = save(saved_models["bert"], folder / "a")
    return adapter, folder / "out", export(adapter, folder / "out", format="onnx")


def test_an_encoder_s_graph_says_which_prompt_answered(encoder):
    adapter, out, _ = encoder
    predictor = Predictor.load(adapter)
    batch = rows(9, 20, size_of(predictor))
    found = said_by(out / "classifier.onnx", **batch)
    with torch.no_grad():
        predictor.model(**batch)
    routes = predictor.model.last_routes
    assert torch.equal(found["prompt"], routes.chosen)
    assert len(set(found["prompt"].tolist())) > 1
    assert_close(found["prompt_probability"], routes.probabilities[:, 0])


@pytest.mark.parametrize(
    "options", [{"routing": "single"}, {"routing": "linear", "top_k": 2}, {"pooling": "mean"}]
)
def test_an_encoder_s_graph_says_what_the_model_says(saved_models, tmp_path, options):
    adapter = save(saved_models["bert"], tmp_path / "a", **options)
    manifest = export(adapter, tmp_path / "out", format="onnx")
    assert manifest["labels"] == ["warm", "cold"]
    predictor = Predictor.load(adapter)
    for count, tokens in SHAPES:
        batch = rows(count, tokens, size_of(predictor))
        found = said_by(tmp_path / "out" / "classifier.onnx", **batch)
        with torch.no_grad():
            assert_close(found["logits"], predictor.model(**batch).logits, rtol=0, atol=1e-4)


def test_an_encoder_decoder_s_two_graphs_say_what_the_model_says(saved_models, tmp_path):
    adapter = save(saved_models["t5"], tmp_path / "a")
    manifest = export(adapter, tmp_path / "out", format="onnx")
    assert list(manifest["graphs"]) == ["encoder.onnx", "decoder.onnx"]
    predictor = Predictor.load(adapter)
    for count, tokens in SHAPES:
        batch = rows(count, tokens, size_of(predictor))
        written = torch.randint(4, size_of(predictor), (count, 1 + tokens % 3))
        states = said_by(tmp_path / "out" / "encoder.onnx", **batch)["encoder_hidden_states"]
        found = said_by(
            tmp_path / "out" / "decoder.onnx",
            decoder_input_ids=written,
            encoder_hidden_states=states,
            attention_mask=batch["attention_mask"],
        )
        with torch.no_grad():
            expected = predictor.model(**batch, decoder_input_ids=written).logits
        assert_close(found["logits"], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("position", ["before", "after"])
def test_a_decoder_s_graph_routes_by_the_text_and_not_by_the_answer(
    saved_models, tmp_path, position
):
    adapter = save(saved_models["llama"], tmp_path / "a", position=position)
    export(adapter, tmp_path / "out", format="onnx")
    predictor = Predictor.load(adapter)
    path = tmp_path / "out" / "decoder.onnx"
    for count, tokens in SHAPES[1:]:
        batch = rows(count, tokens, size_of(predictor))
        # alone, each text without what follows it
        lengths = (batch["attention_mask"].sum(dim=1) - 2).clamp(min=1)
        text = (torch.arange(tokens)[None] < lengths[:, None]).long()
        found = said_by(path, **batch, text_mask=text)
        for i, length in enumerate(lengths.tolist()):
            with torch.no_grad():
                alone = predictor.model(input_ids=batch["input_ids"][i : i + 1, :length]).logits
            assert_close(found["logits"][i, length - 1], alone[0, -1], rtol=0, atol=1e-4)
            assert found["prompt"][i] == predictor.model.last_routes.chosen[0]


def test_a_reader_of_the_manifest_labels_texts_as_the_predictor_does(encoder):
    from transformers import AutoTokenizer

    adapter, out, _ = encoder
    manifest = json.loads((out / "manifest.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(out)
    batch = tokenizer(
        [manifest["template"].format(text=text) for text in TEXTS],
        padding=True,
        truncation=True,
        max_length=manifest["max_length"],
        return_tensors="np",
    )
    found = session(out / "classifier.onnx").run(
        ["logits"], {name: batch[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
    )[0]
    labels = [manifest["labels"][i] for i in found.argmax(axis=1)]
    assert labels == [answer.label for answer in Predictor.load(adapter).predict(TEXTS)]


def test_a_graph_that_differs_is_not_left_behind(saved_models, tmp_path, monkeypatch):
    # nothing differs by less than nothing
    monkeypatch.setattr(graphs, "TOLERANCE", -1.0)
    adapter = save(saved_models["bert"], tmp_path / "a")
    with pytest.raises(ExportError, match=r"classifier\.onnx: logits of 1 rows of 1 tokens differ"):
        export(adapter, tmp_path / "out", format="onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_model_answers_after_it_was_traced(saved_models, tmp_path):
    from peft_smop.export.source import Exported

    exported = Exported.load(save(saved_models["bert"], tmp_path / "a"))
    before = exported.predictor.predict(TEXTS)
    (tmp_path / "out").mkdir()
    graphs.export_onnx(exported, tmp_path / "out")
    assert exported.predictor.predict(TEXTS) == before


def test_every_file_of_an_export_is_in_its_manifest(encoder):
    import hashlib

    _, out, manifest = encoder
    files = {path.name: path for path in out.iterdir()}
    del files["manifest.json"]
    assert manifest["sha256"] == {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()
    }


def test_an_adapter_without_soft_prompts_is_one_sentence(saved_models, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        tiny.KINDS["bert"].model(), LoraConfig(task_type="SEQ_CLS", target_modules=["query"])
    )
    model.save_pretrained(str(tmp_path / "a"))
    save(saved_models["bert"], tmp_path / "b")
    (tmp_path / "a" / "predictor.json").write_text((tmp_path / "b" / "predictor.json").read_text())
    with pytest.raises(ConfigError, match="holds no soft prompts"):
        export(tmp_path / "a", tmp_path / "out", format="onnx")
