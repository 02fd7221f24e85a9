"""Tiny models on disk, with a tokenizer."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tiny import Kind


def save(kind: Kind, directory: Path, *, texts: Iterable[str], size: int = 400) -> Path:
    """A tiny model of this kind, grown to a tokenizer for the given texts, as a directory."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = ["<pad>", "</s>", "<unk>", "<s>"]
    trainer = trainers.WordLevelTrainer(vocab_size=size, special_tokens=special)
    tokenizer.train_from_iterator(texts, trainer)
    if kind.task_type != "CAUSAL_LM":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", 1)]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    model = kind.model()
    model.resize_token_embeddings(len(fast))
    model.config.pad_token_id, model.config.eos_token_id = 0, 1
    model.save_pretrained(directory)
    fast.save_pretrained(directory)
    return directory
