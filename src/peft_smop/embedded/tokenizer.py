"""The tokenizer of the offline default: byte-level BPE, so that any text of a user can be read."""

from __future__ import annotations

from random import Random

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from peft_smop.embedded.mixture import SENTINELS, write_example

PAD, EOS, UNK = "<pad>", "</s>", "<unk>"
VOCABULARY_SIZE = 1600
"""More than the generated language can fill: BPE stops when each of its words is one token."""

_MAX_LENGTH = 512


def train_tokenizer(rng: Random, rows: int = 20_000) -> PreTrainedTokenizerFast:
    """Learn the merges from `rows` rows of the pretraining mixture.

    A word is written with the space in front of it, also at the start of a text, so "yes" alone and
    "yes" within a sentence are the same token.
    """
    bpe = Tokenizer(models.BPE(unk_token=UNK))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    # Without the strip, generated answers would start with a blank.
    bpe.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[PAD, EOS, UNK, *(AddedToken(name, lstrip=True) for name in SENTINELS)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    corpus = [write_example(rng) for _ in range(rows)]
    # The sentinels stand in the corpus, but they are no words to learn pieces from.
    lines = (
        " ".join(word for word in f"{row.source} {row.target}".split() if word not in SENTINELS)
        for row in corpus
    )
    bpe.train_from_iterator(lines, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", pair=f"$A {EOS} $B {EOS}", special_tokens=[(EOS, 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        extra_special_tokens=list(SENTINELS),
        model_max_length=_MAX_LENGTH,
        clean_up_tokenization_spaces=False,
        # T5 has no segments.
        model_input_names=["input_ids", "attention_mask"],
    )
