"""A GGUF file is unpacked once, and is afterwards what it was to the bit."""

import shutil

import numpy as np
import pytest
import torch

from peft_smop.errors import CheckpointError
from peft_smop.methods import load_backbone, sources

gguf = pytest.importorskip("gguf", reason="needs the extra peft-smop[gguf]")

WIDTH, INNER, HEADS, LAYERS = 32, 64, 4, 2
TOKENS = ["<unk>", "<s>", "</s>", *(chr(c) for c in range(ord("a"), ord("z") + 1)), "Ġ", "th", "he"]
MERGES = ["t h", "h e"]


@pytest.fixture
def file(tmp_path):
    """A tiny Llama of random weights."""
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_merges(MERGES)
    writer.add_token_types([2, 3, 3] + [1] * (len(TOKENS) - 3))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    draw = np.random.default_rng(0)
    shapes = {"token_embd": (len(TOKENS), WIDTH), "output": (len(TOKENS), WIDTH)}
    for i in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes[f"blk.{i}.{name}"] = (WIDTH, WIDTH)
        shapes[f"blk.{i}.ffn_gate"] = shapes[f"blk.{i}.ffn_up"] = (INNER, WIDTH)
        shapes[f"blk.{i}.ffn_down"] = (WIDTH, INNER)
        shapes[f"blk.{i}.attn_norm"] = shapes[f"blk.{i}.ffn_norm"] = (WIDTH,)
    shapes["output_norm"] = (WIDTH,)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", draw.normal(0, 0.3, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setattr(sources, "UNPACKED", folder)
    return folder


def logits(path):
    found = load_backbone(str(path), labels=2, dtype="fp32")
    assert found.task_type == "CAUSAL_LM"
    ids = found.tokenizer("the hat", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return found, found.model.eval()(input_ids=ids).logits


def test_it_is_unpacked_once_and_gives_the_same_logits(file, cache, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("peft_smop.methods.backbones.unpacked", lambda source: source)
        _, expected = logits(file)
    assert not cache.exists()
    first, one = logits(file)
    assert torch.equal(one, expected)
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(sources, "_unpack", lambda *_: pytest.fail("unpacked again"))
    _, other = logits(file)
    assert torch.equal(other, expected)
    # adapters remember the file's place, not the cache
    assert first.model.name_or_path == first.tokenizer.name_or_path == str(file.parent)
    assert first.model.config.tie_word_embeddings is False


def test_another_file_of_that_name_is_another_model(file, cache):
    _, one = logits(file)
    content = bytearray(file.read_bytes())
    content[-64:] = np.ones(16, dtype=np.float32).tobytes()
    file.write_bytes(content)
    _, other = logits(file)
    assert not torch.equal(one, other)
    assert len(list(cache.iterdir())) == 2


def test_where_nothing_can_be_kept_it_is_read_each_time(file, cache):
    cache.write_text("a file where a folder should be")
    _, one = logits(file)
    assert torch.isfinite(one).all()


def test_a_damaged_file_is_one_sentence_and_leaves_nothing(file, cache):
    file.write_bytes(file.read_bytes()[:900])
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        load_backbone(str(file), labels=2)
    assert "\n" not in str(caught.value)
    assert not cache.exists() or not list(cache.iterdir())
    shutil.rmtree(cache, ignore_errors=True)
