from __future__ import annotations

import json

import pytest
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from peft_smop.embedded import MODEL_DIR, MODEL_NAME
from peft_smop.embedded.language import SKILLS
from peft_smop.embedded.pretrain import measure

MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def model():  # type: ignore[no-untyped-def]
    return AutoModelForSeq2SeqLM.from_pretrained(MODEL_DIR).eval()


@pytest.fixture(scope="module")
def tokenizer():  # type: ignore[no-untyped-def]
    return AutoTokenizer.from_pretrained(MODEL_DIR)


def test_the_folder_is_small_and_holds_weights_as_safetensors_only() -> None:
    files = [path for path in MODEL_DIR.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 6 * MEGABYTE
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    assert MODEL_NAME == "embedded"


def test_the_model_is_a_small_t5(model) -> None:  # type: ignore[no-untyped-def]
    assert model.config.model_type == "t5"
    assert model.num_parameters() < 1_500_000
    assert str(model.dtype) == "torch.float32"


def test_the_tokenizer_fits_the_model(model, tokenizer) -> None:  # type: ignore[no-untyped-def]
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.pad_token_id == model.config.decoder_start_token_id == 0
    assert tokenizer("Oslo was quite lovely.")["input_ids"][-1] == model.config.eos_token_id


def test_instructed_skills_hold_on_fresh_rows(model, tokenizer) -> None:  # type: ignore[no-untyped-def]
    accuracy = measure(model, tokenizer, rows_per_skill=150, seed=1234)
    assert accuracy["mean"] > 0.93, accuracy
    assert min(accuracy[skill] for skill in SKILLS) > 0.85, accuracy


@pytest.mark.parametrize(
    ("source", "answer"),
    [
        ("sentiment, yes or no: Oslo was never kind.", "no"),
        ("sentiment, yes or no: Oslo was very kind.", "yes"),
        ("cause, linked or apart: rain near Anna brought mud.", "linked"),
        ("comparison, true or false: Ben has nine coins, more than a pair.", "true"),
        ("sense, same or other: Emma drew a bank with reeds, then one with cash.", "other"),
        ("sentiment, good or bad: Ben has nine coins, more than a pair. Ben was not kind.", "bad"),
    ],
)
def test_it_answers_by_generating(model, tokenizer, source: str, answer: str) -> None:  # type: ignore[no-untyped-def]
    output = model.generate(**tokenizer(source, return_tensors="pt"), max_new_tokens=4)
    assert tokenizer.decode(output[0], skip_special_tokens=True) == answer


def test_the_record_agrees_with_the_files(model, tokenizer) -> None:  # type: ignore[no-untyped-def]
    record = json.loads((MODEL_DIR / "recipe.json").read_text())
    assert record["parameters"] == model.num_parameters()
    assert record["vocabulary"] == len(tokenizer)
    assert record["recipe"]["seed"] == 0
