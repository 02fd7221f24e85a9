"""`smop routes`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from peft_smop.cli.named import check_path
from peft_smop.cli.options import (
    BackboneOfTrained,
    DataOfTrained,
    Part,
    PartOption,
    TaskOfAdapter,
    TrainedPath,
)
from peft_smop.cli.show import plain_table, warn_of_others
from peft_smop.cli.terminal import Console, counting
from peft_smop.errors import RunError


def routes(
    path: TrainedPath,
    part: PartOption = Part.validation,
    task: TaskOfAdapter = None,
    data: DataOfTrained = None,
    model: BackboneOfTrained = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Directory for routes.json and routes.png."),
    ] = None,
) -> None:
    """Say what a trained router is worth, and what it routes by.

    Every example is answered under each prompt, k + 1 evaluations in all.

    Example: [bold]smop routes runs/medley-embedded-smop-posterior-s0 --output routes[/bold]
    """
    if output is not None and output.exists() and not output.is_dir():
        raise RunError(f"{output} is a file; expected a directory for routes.json and routes.png")
    check_path(path)
    from peft_smop.lab import load_trained, part_of_task
    from peft_smop.report import WHO, draw_routes
    from peft_smop.results import write_json
    from peft_smop.scoring import certify
    from peft_smop.tuner import SMoPModel

    trained = load_trained(path, task=task, model=model, data=data)
    spec = trained.spec
    own = part_of_task(trained, part.value)
    console = Console(highlight=False)
    warn_of_others(console, own, part=part.value)
    adapter = SMoPModel.adapter_of(trained.model)
    passes = 1 if adapter is None else 1 + adapter.prompts.shape[0]
    total = passes * len(own.examples)
    with counting(console, "answering under every prompt", total) as done:
        found = certify(trained.model, trained.formulation, own.examples, on_batch=done)
    table = plain_table("who chooses the prompt", found.metric, "95 % interval")
    for who, said in WHO.items():
        score = getattr(found, who)
        more = f" (number {found.best_prompt})" if who == "single" else ""
        table.add_row(said + more, f"{score.value:.1f}", f"{score.low:.1f} to {score.high:.1f}")
    console.print(f"{spec.task}, {part.value}, {found.examples} examples", markup=False)
    console.print(table)
    console.print(found.verdict, style="bold", markup=False, soft_wrap=True)
    console.print(
        "(its own prompts; one that is trained alone may do better than any of them: smop compare"
        f" {spec.asked} --methods {spec.method.name},single)",
        soft_wrap=True,
        markup=False,
    )
    regret = found.regret
    console.print(
        f"the best prompt of each row would add {regret.value:.1f} points"
        f" ({regret.low:.1f} to {regret.high:.1f}); prompts disagree on {found.disagreement:.0f} %"
        " of the examples",
        soft_wrap=True,
    )
    load = "  ".join(f"{share:.0%}" for share in found.load)
    console.print(f"load of the prompts: {load}", markup=False)
    for what, told in found.information.items():
        known = "" if told.value > told.shuffled else ", no more than chance"
        console.print(
            f"routes tell {told.value:.2f} nats of the {what} (shuffled {told.shuffled:.2f}){known}"
        )
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        record = {**asdict(found), "part": part.value, "verdict": found.verdict}
        write_json(output / "routes.json", record)
        draw_routes(record, output / "routes.png", title=f"{spec.task}, {spec.model}")
        console.print(f"saved in {output}", markup=False)
