"""`smop compare`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from peft_smop.cli.definitions import GFLOPS, MEMORY, SECONDS, TRAINED
from peft_smop.cli.engines import ENGINE_GROUP, Engine
from peft_smop.cli.groups import joined, training_group, with_groups
from peft_smop.cli.named import names_in
from peft_smop.cli.options import (
    METHOD,
    RUN,
    Data,
    Model,
    Preset,
    SetForAll,
    TaskOption,
    TrainExamples,
)
from peft_smop.cli.show import or_dash
from peft_smop.cli.terminal import Console
from peft_smop.names import DEFAULT_MODEL, training_options
from peft_smop.tasks import check_task

if TYPE_CHECKING:
    from peft_smop.report import Row
    from peft_smop.report.table import Table

DEFINITIONS = (
    "score: mean ± standard deviation over seeds, on the test examples, once, by the state that"
    " validation chose",
    "difference: to the first method, in points, 95 % interval of a paired bootstrap over examples"
    " (all seeds of an example together); p is corrected for the number of methods (Holm), the"
    " verdict is at 5 %",
    "won: the seeds in which it scored higher than the first; the verdict speaks of THESE trained"
    " models, and where seeds disagree, or there is one, others may come out otherwise",
    "validation: mean score of the chosen states; lr: learning rate; load: share of the test rows"
    " that each prompt got, the largest first",
    TRAINED,
    f"{SECONDS}, median over steps and seeds, evaluation left out",
    f"{MEMORY}; median over seeds",
    f"{GFLOPS}; of forward and backward for the training example of median length, unpadded",
)
WORTH = (
    "worth of routing: points over the best single one of the same prompts, 95 % interval, on"
    " validation examples; where it holds 0, nothing shows that the task needs more than one"
)


@with_groups(training=training_group(), engine=ENGINE_GROUP)
def compare(
    *,
    task: TaskOption,
    methods: Annotated[
        str,
        typer.Option(
            help="Names of `smop methods`, commas between them; options after colons,"
            " such as smop:k=8:l=3. The others are held against the first. By default smop,"
            " single, prompt-tuning-20 and prompt-tuning-100.",
            show_default=False,
            rich_help_panel=METHOD,
        ),
    ] = "smop,single,prompt-tuning-20,prompt-tuning-100",
    data: Data = None,
    preset: Preset = None,
    train_examples: TrainExamples = None,
    model: Model = DEFAULT_MODEL,
    seeds: Annotated[
        int, typer.Option(min=1, help="Runs of each method.", rich_help_panel=RUN)
    ] = 5,
    seed: Annotated[int, typer.Option(min=0, help="The first seed.", rich_help_panel=RUN)] = 0,
    trials: Annotated[
        int,
        typer.Option(
            min=1,
            help="Learning rates tried for each method, chosen by validation on one seed.",
            rich_help_panel=METHOD,
        ),
    ] = 1,
    controls: Annotated[
        bool,
        typer.Option(
            "--controls",
            help="Add to every mixture: prompt tuning at l and at k·l, and the uniform mixture.",
            rich_help_panel=METHOD,
        ),
    ] = False,
    training: dict[str, Any],
    options: SetForAll = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="For all runs and tables; runs/compare-TASK-MODEL.",
            rich_help_panel=RUN,
        ),
    ] = None,
    engine: Engine,
) -> None:
    """Train several methods on equal terms and print one table of scores and one of costs.

    Stopped, the same command goes on where it was; finished runs are not run again.

    Example: [bold]smop compare --task medley --model embedded --max-steps 240 --seeds 5[/bold]

    The paper's first table: [bold]smop compare --task rte --data superglue --methods
    smop,prompt-tuning-100,p-tuning-20,full --trials 3[/bold]
    """
    check_task(task)
    said = joined(training, options, training_options())
    names = names_in(methods)
    from peft_smop.lab import matched_controls, study, variant
    from peft_smop.report import compare as compare_runs
    from peft_smop.report import draw
    from peft_smop.results import write_json

    chosen = [variant(name) for name in names]
    if controls:
        chosen += matched_controls(chosen)
    common: dict[str, Any] = {
        "task": task,
        "data": data,
        "preset": preset,
        "train_examples": train_examples,
        "model": model,
        "training": said,
    }
    about = [Path(part).name.split(".yaml")[0] for part in (task, model)]
    where = output or Path("runs") / "-".join(["compare", *about])
    quiet = Console(stderr=True, highlight=False, soft_wrap=True)
    work = engine.on(quiet)
    try:
        groups = study(
            common,
            chosen,
            seeds=range(seed, seed + seeds),
            trials=trials,
            output=where,
            engine=work,
        )
    except KeyboardInterrupt:
        quiet.print(f"stopped; {where} is kept: the same command goes on with it")
        raise typer.Exit(130) from None
    rows = compare_runs(groups)
    picture = where / "comparison.png"
    draw(groups, picture, title=f"{about[0]} on {about[1]}")
    write_json(where / "comparison.json", {"methods": [asdict(row) for row in rows]})
    _print(rows, seeds=seeds, trials=trials, title=f"{about[0]} on {about[1]}")
    Console(highlight=False).print(
        f"\n{where}: comparison.json, comparison.png, search.json, and the runs", soft_wrap=True
    )


def _print(rows: Sequence[Row], *, seeds: int, trials: int, title: str) -> None:
    """Both tables, and what their columns mean."""
    console = Console(highlight=False)
    width = min(console.width, 120) if console.is_terminal else 80
    first = rows[0]
    console.print(
        f"{title}: {seeds} {'seed' if seeds == 1 else 'seeds'}, {first.examples} test examples"
        f" ({100 / first.examples:.2f} points each), always the majority label:"
        f" {first.majority:.1f}; {trials} learning {'rate' if trials == 1 else 'rates'} tried for"
        " each method\n",
        soft_wrap=True,
    )
    for table in (_scores(rows), _costs(rows)):
        print(table.text(width))
        print()
    for line in (*DEFINITIONS, *([WORTH] if any(any(row.worth) for row in rows) else [])):
        console.print(Text(fill(line, width, subsequent_indent="  "), style="dim"), soft_wrap=True)
    for row in rows:
        if any(row.worth):
            by_seed = [f"{one[0]:+.1f} to {one[1]:+.1f}" if one else "unknown" for one in row.worth]
            said = f"{row.name}: worth of routing by seed: {'; '.join(by_seed)}"
            console.print(fill(said, width, subsequent_indent="  "), soft_wrap=True)
    for row in rows:
        for alarm in row.alarms:
            console.print(
                f"[yellow]warning:[/] {row.name}: {alarm} {'run' if seeds == 1 else 'runs'}",
                soft_wrap=True,
            )


def _scores(rows: Sequence[Row]) -> Table:
    from peft_smop.report.table import Cell, Table

    lines = []
    for row in rows:
        d = row.difference
        compared = ("", "", "", "", row.verdict)
        if d is not None:
            interval = f"{d.low:+.1f} to {d.high:+.1f}"
            won = f"{row.wins} of {len(row.scores)}"
            p = "<0.001" if d.p < 0.001 else f"{d.p:.3f}"
            compared = (f"{d.points:+.1f}", interval, p, won, row.verdict)
        validation = sum(row.validation) / len(row.validation)
        lines.append(tuple(map(Cell, (row.name, row.spread, *compared, f"{validation:.1f}"))))
    columns = ("difference", "95 %", "p", "won", "verdict", "validation")
    return Table("scores", "Scores", ("method", rows[0].metric, *columns), tuple(lines))


def _costs(rows: Sequence[Row]) -> Table:
    from peft_smop.report.table import Cell, Table

    lines = []
    for row in rows:
        figures = (
            f"{row.trainable:,}",
            f"{row.allocated:,}",
            f"{row.percentage:.4f}",
            f"{row.learning_rate:g}",
            or_dash(row.seconds_per_100_steps, ".1f"),
            or_dash(row.peak_memory_mib, ",.0f"),
            or_dash(row.training_gflops_per_example, ".3g"),
            " ".join(f"{part:.0%}" for part in row.load[:8]) if len(row.load) > 1 else "",
        )
        lines.append(tuple(map(Cell, (row.name, *figures))))
    columns = ("trained", "allocated", "%", "lr", "s/100", "MiB", "GFLOPs", "load")
    return Table("costs", "Costs", ("method", *columns), tuple(lines))
