"""Does packing without padding pay over batches of similar length, on an encoder?

Packed: rows are laid end to end in one long row, with restarted positions and attention only within
a row's own block. Its attention is computed densely and masked, which is what every PyTorch device
can do. Sorted batches are what training here uses.
"""

from __future__ import annotations

from argparse import Namespace

import torch
from torch import Tensor
from transformers import BertConfig, BertModel

import bench
from bench import Batch, Line, Result

SORTED = "sorted by length, padded"
SHAPES = {
    "minilm": {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536},
    "tiny": {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64},
}


def measure(given: Namespace) -> Result:
    """Forward and backward to the embeddings, over some batches of a task."""
    config = BertConfig(
        vocab_size=bench.VOCABULARY,
        num_hidden_layers=6,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **SHAPES[given.model],
    )
    model = BertModel(config, add_pooling_layer=False).requires_grad_(False).to(given.device)
    if given.device == "cuda":
        model = model.to(torch.bfloat16)
    split, formulation = bench.load_rows(given, given.task, model)
    rows = [formulation.encode(e)["input_ids"] for e in split.train[: given.rows * given.batches]]
    layouts = {
        "as they come, padded": [_padded(own) for own in _cut(rows, given.rows)],
        SORTED: [_padded(own) for own in _cut(sorted(rows, key=len), given.rows)],
        "packed, one row for a batch": [_packed([own]) for own in _cut(rows, given.rows)],
        "packed, rows of 512": [_packed(bins) for bins in _cut(_bins(rows, 512), 4)],
    }

    def passed(batches: list[Batch]) -> None:
        for batch in batches:
            x = model.embeddings.word_embeddings(batch["input_ids"]).requires_grad_()
            model(inputs_embeds=x, **_place(batch)).last_hidden_state.sum().backward()

    on_device = {
        what: [bench.on_device(given, batch) for batch in batches]
        for what, batches in layouts.items()
    }
    calls = {what: lambda batches=batches: passed(batches) for what, batches in on_device.items()}
    seconds = bench.interleave(calls, given.repeats)
    text = sum(map(len, rows))
    return Result(
        says=f"6 layers, {bench.WORDS}; {len(rows)} rows of {given.task}, batches of {given.rows}",
        per="pass over the rows",
        over=(SORTED,),
        lines=[
            Line(
                given.task,
                what,
                taken,
                {
                    "places over tokens of text": sum(b["input_ids"].numel() for b in batches)
                    / text,
                    "largest difference to a row alone": _apart(model, batches[0]),
                },
            )
            for (what, taken), batches in zip(seconds.items(), on_device.values(), strict=True)
        ],
    )


def _cut(things: list, size: int) -> list[list]:
    return [things[i : i + size] for i in range(0, len(things), size)]


def _bins(rows: list[list[int]], most: int) -> list[list[list[int]]]:
    """Rows laid into bins of at most `most` tokens, each into the first with room."""
    bins: list[list[list[int]]] = []
    for row in sorted(rows, key=len, reverse=True):
        room = (own for own in bins if sum(map(len, own)) + len(row) <= most)
        own = next(room, None)
        if own is None:
            bins.append([row])
        else:
            own.append(row)
    return bins


def _padded(rows: list[list[int]]) -> Batch:
    return _packed([[row] for row in rows])


def _packed(bins: list[list[list[int]]]) -> Batch:
    """Every bin a row. `block` numbers a bin's texts, -1 is padding."""
    size = max(sum(map(len, own)) for own in bins)
    ids, block, positions = (torch.full((len(bins), size), v) for v in (0, -1, 0))
    for i, own in enumerate(bins):
        flat = [token for row in own for token in row]
        ids[i, : len(flat)] = torch.tensor(flat)
        block[i, : len(flat)] = torch.tensor([j for j, row in enumerate(own) for _ in row])
        positions[i, : len(flat)] = torch.tensor([p for row in own for p in range(len(row))])
    alone = all(len(own) == 1 for own in bins)
    mask = (block == 0).long() if alone else block[:, None, :, None] == block[:, None, None, :]
    return {"input_ids": ids, "block": block, "position_ids": positions, "attention_mask": mask}


def _place(batch: Batch) -> dict[str, Tensor]:
    return {name: batch[name] for name in ("attention_mask", "position_ids")}


def _apart(model: BertModel, batch: Batch) -> float:
    """The largest difference between the states of a batch's first rows and of each row alone."""
    apart = 0.0
    with torch.inference_mode():
        states = model(input_ids=batch["input_ids"], **_place(batch)).last_hidden_state
        for j in range(min(4, int(batch["block"][0].max()) + 1)):
            own = batch["block"][0] == j
            alone = model(input_ids=batch["input_ids"][:1, own]).last_hidden_state[0]
            apart = max(apart, float((states[0, own] - alone).abs().max()))
    return apart


if __name__ == "__main__":
    bench.main(
        "packing",
        __doc__,
        measure,
        repeats=7,
        example="--data superglue",
        shapes=SHAPES,
        task="rte",
        rows=32,
        batches=8,
    )
