"""Prompts at an encoder-decoder's decoder start instead of before its text: does that place do?

    encoder [text]   decoder [prompt][start][answer]

The encoder's states then depend on no prompt: every text is read once, before training, whatever
the number of prompts. The packaged model on `medley`: one prompt, and one for each of the nine
kinds of texts, told which. Prints a table of test accuracies; nothing is saved.

    python tools/try_decoder_start.py --seeds 2
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from statistics import mean

import torch
from torch import Tensor, nn
from transformers import Adafactor, get_linear_schedule_with_warmup

from peft_smop.methods import load_backbone
from peft_smop.tasks import Example, load_task

STEPS, ROWS, RATE, LENGTH = 240, 32, 0.5, 5
"""As the lab's runs on `medley` have them."""


class Read:
    """Examples whose texts an encoder has read."""

    def __init__(self, model: nn.Module, tokenizer, examples: Sequence[Example]) -> None:
        kinds = sorted({str(example.population) for example in examples})
        told = tokenizer([e.text for e in examples], return_tensors="pt", padding=True)
        self.mask = told["attention_mask"]
        with torch.no_grad():
            self.states = torch.cat(
                [
                    model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
                    for ids, mask in zip(
                        told["input_ids"].split(64), self.mask.split(64), strict=False
                    )
                ]
            )
        self.kinds = torch.tensor([kinds.index(str(e.population)) for e in examples])
        self.labels = torch.tensor([int(e.label) for e in examples])


def answer_losses(
    model: nn.Module, prompts: Tensor, states: Tensor, mask: Tensor, answers: Tensor
) -> Tensor:
    """-log p(answer | text, prompt) of every row, from the prompts in front of its decoder."""
    table = model.get_input_embeddings()
    shifted = model.prepare_decoder_input_ids_from_labels(labels=answers)
    inputs = torch.cat([prompts, table(shifted)], dim=1)
    logits = model(
        encoder_outputs=(states,), attention_mask=mask, decoder_inputs_embeds=inputs
    ).logits[:, prompts.shape[1] :]
    losses = nn.functional.cross_entropy(
        logits.transpose(1, 2), answers, reduction="none", ignore_index=-100
    )
    return losses.sum(dim=1)


def accuracy(model: nn.Module, prompts: Tensor, route: Tensor, read: Read, words: Tensor) -> float:
    """Share of the rows whose own answer is the likeliest of all labels, in %."""
    right = []
    with torch.no_grad():
        for rows in torch.arange(len(read.labels)).split(64):
            scores = [
                answer_losses(
                    model,
                    prompts[route[rows]],
                    read.states[rows],
                    read.mask[rows],
                    word.expand(len(rows), -1),
                )
                for word in words
            ]
            right.append(torch.stack(scores, dim=1).argmin(dim=1) == read.labels[rows])
    return 100 * torch.cat(right).float().mean().item()


def trained(seed: int, *, told: bool) -> float:
    """Test accuracy of one training."""
    task, split = load_task("medley", seed=seed)
    backbone = load_backbone("embedded", labels=len(task.labels))
    model, tokenizer = backbone.model.requires_grad_(False).eval(), backbone.tokenizer
    encoded = tokenizer(list(task.verbalizers), padding=True, return_tensors="pt")
    words = encoded["input_ids"].masked_fill(encoded["attention_mask"] == 0, -100)
    train, test = Read(model, tokenizer, split.train), Read(model, tokenizer, split.test)
    generator = torch.Generator().manual_seed(seed)
    table = model.get_input_embeddings().weight
    count = 1 + int(train.kinds.max()) if told else 1
    chosen = torch.randint(len(table), (count, LENGTH), generator=generator)
    prompts = nn.Parameter(table[chosen].clone())
    optimizer = Adafactor([prompts], lr=RATE, scale_parameter=False, relative_step=False)
    schedule = get_linear_schedule_with_warmup(optimizer, int(0.06 * STEPS), STEPS)
    for _ in range(STEPS):
        rows = torch.randperm(len(train.labels), generator=generator)[:ROWS]
        route = train.kinds[rows] if told else torch.zeros_like(rows)
        losses = answer_losses(
            model,
            prompts[route],
            train.states[rows],
            train.mask[rows],
            words[train.labels[rows]],
        )
        losses.mean().backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    route = test.kinds if told else torch.zeros_like(test.kinds)
    return accuracy(model, prompts.detach(), route, test, words)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=2, help="how many seeds, from 0")
    seeds = range(parser.parse_args().seeds)
    for name, told in (("one prompt", False), ("told the kind: nine prompts", True)):
        found = [trained(seed, told=told) for seed in seeds]
        each = " ".join(f"{value:.1f}" for value in found)
        print(f"{name:30s} {mean(found):5.1f}   seeds {each}")


if __name__ == "__main__":
    main()
