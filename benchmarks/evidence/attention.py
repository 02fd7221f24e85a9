"""What the state that a head reads is made from: where the first token looks, layer by layer.

    python benchmarks/evidence/attention.py runs/letters/runs/letters-minilm-l6-single-*

Of each finished run on an encoder: means over 120 validation examples and the layer's heads of the
attention that the first token gives to itself, to its prompt, to the text and to the token that
ends it; with the run's prompt, and without.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path

import torch
from peft import PeftModel, TaskType
from torch import Tensor

from peft_smop.errors import ConfigError, SMoPError
from peft_smop.lab import load_trained, part_of_task
from peft_smop.quiet import quiet_libraries
from peft_smop.tuner import SMoPModel

MOST_ROWS = 120
HEAD = (
    "| layer | itself | prompt | text | end | without: itself | text | end |"
    "\n| --- | --- | --- | --- | --- | --- | --- | --- |"
)


def shares(attention: Tensor, mask: Tensor, length: int) -> list[float]:
    """What the first token gives to itself, its prompt, the text and the end, mean over rows.

    Args:
        attention: (b, heads, s, s), of a prompt and of tokens.
        mask: (b, n), of the tokens, padded on the right.
        length: of the prompt, s - n.
    """
    given = attention[:, :, length].mean(dim=1)
    last = length + mask.sum(dim=1, keepdim=True) - 1
    itself, prompt = given[:, length].mean(), given[:, :length].sum(dim=1).mean()
    end = given.gather(1, last).mean()
    return [float(itself), float(prompt), float(1 - itself - prompt - end), float(end)]


@torch.no_grad()
def table(run: Path) -> str:
    """A run's, in Markdown.

    Raises:
        SMoPError: it is no finished run of prompts on an encoder.
    """
    trained = load_trained(run)
    adapter, model = SMoPModel.adapter_of(trained.model), trained.model
    config = model.peft_config["default"] if isinstance(model, PeftModel) else None
    if adapter is None or config is None or config.task_type != TaskType.SEQ_CLS:
        raise ConfigError(f"{run} has no prompts before an encoder; give a run that has")
    examples = part_of_task(trained, "validation").examples[:MOST_ROWS]
    batch = trained.formulation.collate([trained.formulation.encode(e) for e in examples])
    batch.pop("labels", None)
    model.get_base_model().set_attn_implementation("eager")
    each = []
    for without in (False, True):
        with model.disable_adapter() if without else nullcontext():
            layers = model(**batch, output_attentions=True).attentions
        length = 0 if without else adapter.length
        each.append([shares(one, batch["attention_mask"], length) for one in layers])
    rows = [
        f"| {layer} | " + " | ".join(f"{share:.2f}" for share in (*own, bare[0], *bare[2:])) + " |"
        for layer, (own, bare) in enumerate(zip(*each, strict=True))
    ]
    return "\n".join([HEAD, *rows])


def main() -> None:
    """Print a table for each run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    quiet_libraries()
    for run in parser.parse_args().runs:
        try:
            print(f"\n{run.name}\n\n{table(run)}")
        except SMoPError as error:
            parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
