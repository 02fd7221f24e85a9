"""The tables of a report: scores, significance, over all tasks, costs, and beside the paper's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import mean, median

from peft_smop.errors import RunError
from peft_smop.report import paper
from peft_smop.report.comparison import compare
from peft_smop.report.gathering import Group
from peft_smop.report.paper import PaperFigure
from peft_smop.report.robust import interquartile_mean, probability_of_improvement
from peft_smop.report.table import Cell, Table, Tone

ROUNDING = 0.5
"""Of the last printed digit."""


def scores(groups: Sequence[Group]) -> Table:
    """Mean and spread of every method on every task."""
    columns = _columns(groups)
    rows = []
    for label, own in _by_label(groups).items():
        cells = [Cell.of(_spread(own.get(column))) for column in columns]
        whole = [own[column].mean for column in columns if column in own]
        if len(columns) > 1:
            cells.append(Cell.of(f"{mean(whole):.1f}" if len(whole) == len(columns) else None))
        rows.append((Cell(label), *cells))
    named = [_column_name(task, model, groups) for task, model in columns]
    several = ("mean",) if len(columns) > 1 else ()
    examples = {
        f"{g.task}: {g.runs[0].result.test.metric}, {g.runs[0].result.test.examples} test examples,"
        f" always the majority label {mean(r.result.test.majority for r in g.runs):.1f}"
        for g in groups
    }
    tried = sorted({rate for g in groups for rate in g.rates if len(g.rates) > 1}, reverse=True)
    searched = (
        "where several learning rates were tried, the one with the best mean validation score: "
        + ", ".join(f"{rate:g}" for rate in tried)
    )
    return Table(
        "scores",
        "Test scores, %: mean ± standard deviation over seeds (number of seeds)",
        ("method", *named, *several),
        tuple(rows),
        (*sorted(examples), *((searched,) if tried else ())),
    )


def significance(groups: Sequence[Group]) -> Table | None:
    """Every method against the first, task by task; None where there is nothing to compare."""
    rows, refused = [], []
    first = next(iter(_by_label(groups)))
    for task, model in _columns(groups):
        own = [g for g in groups if (g.task, g.model) == (task, model)]
        if len(own) < 2 or own[0].label != first:
            continue
        where = _column_name(task, model, groups)
        shared = set.intersection(*({r.result.seed for r in g.runs} for g in own))
        if not shared:
            refused.append(f"{where}: the methods have no seed in common")
            continue
        same = {g.label: [r.path for r in g.runs if r.result.seed in shared] for g in own}
        try:
            found = compare(same)
        except RunError as error:
            refused.append(f"{where}: {error}")
            continue
        for row in found[1:]:
            d = row.difference
            if d is not None:
                p = "<0.001" if d.p < 0.001 else f"{d.p:.3f}"
                interval = f"{d.low:+.1f} to {d.high:+.1f}"
                won = f"{row.wins} of {len(row.scores)}"
                cells = (where, f"{d.points:+.1f}", interval, p, won, row.verdict)
                rows.append((Cell(row.name), *map(Cell, cells)))
    if not rows and not refused:
        return None
    return Table(
        "significance",
        f"Against {first}, in points",
        ("method", "task", "difference", "95 %", "p", "won", "verdict"),
        tuple(rows),
        (
            "paired bootstrap over examples, all seeds of an example together; p corrected for the"
            " number of methods on a task (Holm); the verdict is at 5 %",
            "won: the seeds in which it scored higher",
            *refused,
        ),
    )


def over_tasks(groups: Sequence[Group]) -> Table | None:
    """Interquartile mean and probability of improvement; None for one run a method."""
    columns = _columns(groups)
    complete = {
        label: [own[column].scores for column in columns]
        for label, own in _by_label(groups).items()
        if all(column in own for column in columns)
    }
    if not complete or max(len(s) for runs in complete.values() for s in runs) < 2:
        return None
    first = next(iter(complete))
    rows = []
    for label, runs in complete.items():
        middle = interquartile_mean(runs)
        cells = [f"{middle.value:.1f}", f"{middle.low:.1f} to {middle.high:.1f}", "", ""]
        if label != first:
            p = probability_of_improvement(runs, complete[first])
            cells[2:] = [f"{100 * p.value:.0f} %", f"{100 * p.low:.0f} to {100 * p.high:.0f}"]
        rows.append((Cell(label), *map(Cell, cells)))
    left_out = [label for label in _by_label(groups) if label not in complete]
    return Table(
        "over_tasks",
        f"Over {len(columns)} {'task' if len(columns) == 1 else 'tasks'} and all seeds",
        ("method", "IQM", "95 %", "better", "95 % "),
        tuple(rows),
        (
            "IQM: mean of the middle half of all scores; better: how probably a run scores higher"
            f" than one of {first}, on a task drawn at random (Agarwal et al., 2021); intervals of"
            " a bootstrap over seeds within tasks",
            *((f"left out, as tasks are missing: {', '.join(left_out)}",) if left_out else ()),
        ),
    )


def routing(groups: Sequence[Group]) -> Table | None:
    """What the routing of each method is worth, by validation; None where no run tells."""
    rows = []
    for group in groups:
        found = [run.result.routing for run in group.runs if run.result.routing is not None]
        if not found:
            continue
        above, below = (sum(x.worth.low > 0 for x in found), sum(x.worth.high < 0 for x in found))
        cells = (
            _column_name(group.task, group.model, groups),
            f"{mean(x.worth.value for x in found):+.1f}",
            f"{above} of {len(found)}",
            f"{below} of {len(found)}",
            f"{mean(x.regret.value for x in found):.1f}",
        )
        rows.append((Cell(group.label), *map(Cell, cells)))
    if not rows:
        return None
    return Table(
        "routing",
        "Worth of routing, in points, on validation examples",
        ("method", "task", "worth", "above 0", "below 0", "regret"),
        tuple(rows),
        (
            "worth: of the router's choice over the best single one of the same prompts; above and"
            " below 0: the seeds whose 95 % interval is; regret: what the best prompt of each row"
            " would add; means over seeds",
        ),
    )


def costs(groups: Sequence[Group]) -> Table:
    """What each method took, the median over its runs."""
    rows = []
    for label, own in _by_label(groups).items():
        runs = [run.result for group in own.values() for run in group.runs]
        parameters = runs[0].parameters
        rows.append(
            (
                Cell(label),
                Cell(f"{parameters.trainable:,}"),
                Cell(f"{parameters.percentage:.4f}"),
                Cell.of(_median([r.cost.seconds_per_100_steps for r in runs], ".1f")),
                Cell.of(_median([r.cost.peak_memory_mib for r in runs], ",.0f")),
                Cell.of(_median([r.cost.training_gflops_per_example for r in runs], ".3g")),
                Cell.of(_median([r.cost.inference_gflops_per_example for r in runs], ".3g")),
            )
        )
    hardware = sorted({r.result.environment["device"] for g in groups for r in g.runs})
    return Table(
        "costs",
        "Costs, median over runs",
        ("method", "trained", "%", "s/100", "MiB", "GFLOPs", "GFLOPs inf."),
        tuple(rows),
        (
            f"measured on {', '.join(hardware)}; s/100: seconds of 100 training steps, evaluation"
            " left out; GFLOPs: of forward and backward for the training example of median length,"
            " and of one forward pass (inf.), unpadded",
        ),
    )


def beside_the_paper(groups: Sequence[Group], tables: Iterable[str] = ()) -> Table | None:
    """The paper's figures, ours beside them; never averaged with each other.

    Args:
        groups: ours.
        tables: the numbers of the paper's tables; by default those in which a method of ours is.

    Returns:
        One row for each figure of the paper's that a method of ours is for; None: there is none.
    """
    chosen = list(tables)
    ours = {group.key for group in groups}
    figures = [f for f in paper.figures() if f.table in chosen] or [
        f for f in paper.figures() if f.key in ours and f.metric in paper.SCORES
    ]
    rows = [_beside(figure, [g for g in groups if g.key == figure.key]) for figure in figures]
    if not chosen:
        met = [row for row in rows if "comparable" not in row[-1].text]
        # where nothing can be met, one line for each method says why
        rows = met or [
            next(row for row in rows if row[0].text == label)
            for label in dict.fromkeys(row[0].text for row in rows)
        ]
    if not rows:
        return None
    return Table(
        "paper",
        "Beside the paper: its figure, ours, and what may be said",
        ("method", "figure", "paper", "ours", "difference", "95 %", "n", "seeds", "verdict"),
        tuple(rows),
        (
            "figure: the paper's table, backbone and task (Choi et al., 2023)",
            "95 %: of the difference, from the spread of seeds on both sides and from the number of"
            " our test examples; inside: it holds 0; the paper does not say over how many seeds its"
            f" deviations are, {PAPER_SEEDS} are assumed",
            "n: test examples",
        ),
    )


_COSTS: dict[str, Callable[[Group], list[float | None]]] = {
    paper.TRAINED: lambda g: [r.result.parameters.percentage for r in g.runs],
    paper.SECONDS: lambda g: [r.result.cost.seconds_per_100_steps for r in g.runs],
    paper.MEMORY: lambda g: [
        None if r.result.cost.peak_memory_mib is None else r.result.cost.peak_memory_mib / 1024
        for r in g.runs
    ],
    paper.OPERATIONS: lambda g: [r.result.cost.inference_gflops_per_example for r in g.runs],
}
_DIGITS = {paper.TRAINED: 4}
_NOT_COMPARABLE = {
    paper.SECONDS: "not comparable: another device",
    paper.MEMORY: "not comparable: another device",
    paper.OPERATIONS: "not comparable: the paper does not say how it counts",
}
PAPER_TASKS = ("boolq", "cb", "copa", "multirc", "rte", "wic")
PAPER_SEEDS = 3


def _beside(figure: PaperFigure, own: Sequence[Group]) -> tuple[Cell, ...]:
    digits = _DIGITS.get(figure.metric, 1)
    spread = "" if figure.deviation is None else f" ± {figure.deviation:.{digits}f}"
    what = figure.task if figure.metric in paper.SCORES else figure.metric
    head = (
        Cell(paper.label_of(figure.key)),
        Cell(f"{figure.table}: {figure.model}, {what}"),
        Cell(f"{figure.mean:.{digits}f}{spread}", Tone.paper),
    )
    there = [g for g in own if g.model == figure.model]
    if figure.metric != paper.TRAINED:  # which is the same on every task
        there = [g for g in there if g.task in _tasks_of(figure)]
    reason = _why_not(figure, own, there)
    taken = there if reason is None else (there or list(own))
    if not taken:
        return (*head, *(Cell.of(None) for _ in range(5)), Cell("missing", Tone.missing))
    if figure.metric in paper.SCORES:
        values = [g.mean for g in taken]
    else:
        known = [[v for v in _COSTS[figure.metric](g) if v is not None] for g in taken]
        values = [median(v) for v in known if v]
    if not values:
        return (*head, *(Cell.of(None) for _ in range(5)), Cell("missing", Tone.missing))
    value = mean(values)
    n = sum(g.runs[0].result.test.examples for g in taken)
    seeds = min(len(g.runs) for g in taken)
    told = (f"{n:,}", str(seeds))
    if reason is not None:
        return (*head, Cell(f"{value:.{digits}f}"), *map(Cell, ("", "", *told, reason)))
    difference = value - figure.mean
    if figure.metric == paper.TRAINED:
        inside = abs(difference) <= ROUNDING * 10**-digits + 1e-12
        said = (f"{difference:+.{digits}f}", "", *told, "inside" if inside else "outside")
        return (*head, Cell(f"{value:.{digits}f}"), *map(Cell, said))
    if figure.metric in _NOT_COMPARABLE:
        said = (f"× {value / figure.mean:.2f}", "", *told, _NOT_COMPARABLE[figure.metric])
        return (*head, Cell(f"{value:.{digits}f}"), *map(Cell, said))
    error = math.sqrt(
        sum(_variance(g) for g in taken) / len(taken) ** 2
        + (figure.deviation or 0.0) ** 2 / PAPER_SEEDS
    )
    low, high = difference - 1.96 * error, difference + 1.96 * error
    verdict = "inside" if low <= 0 <= high else "outside"
    said = (f"{difference:+.1f}", f"{low:+.1f} to {high:+.1f}", *told, verdict)
    return (*head, Cell(f"{value:.1f}"), *map(Cell, said))


def _tasks_of(figure: PaperFigure) -> tuple[str, ...]:
    if figure.task in PAPER_TASKS:
        return (figure.task,)
    return ("boolq", "cb", "rte") if figure.table == "3" else PAPER_TASKS


def _why_not(figure: PaperFigure, own: Sequence[Group], there: Sequence[Group]) -> str | None:
    """Why ours is not what the paper measured; None: it is."""
    if not own:
        return "missing"
    if figure.metric == paper.TRAINED:
        return None if any(g.model == figure.model for g in own) else _elsewhere(own)
    if not there:
        return _elsewhere(own)
    lacking = [t for t in _tasks_of(figure) if t not in {g.task for g in there}]
    if lacking:
        return f"not comparable: without {', '.join(lacking)}"
    return None


def _elsewhere(own: Sequence[Group]) -> str:
    tasks = ", ".join(sorted({g.task for g in own}))
    models = ", ".join(sorted({g.model for g in own}))
    return f"not comparable: {tasks} on {models}"


def _variance(group: Group) -> float:
    """Of a group's mean: of its seeds, and of the choice of its test examples."""
    of_seeds = 0.0 if group.deviation is None else group.deviation**2 / len(group.runs)
    test = group.runs[0].result.test
    of_examples = ((test.high - test.low) / 2 / 1.96) ** 2
    return of_seeds + of_examples


def _median(values: Iterable[float | None], form: str) -> str | None:
    known = [value for value in values if value is not None]
    return format(median(known), form) if known else None


def _spread(group: Group | None) -> str | None:
    if group is None:
        return None
    deviation = "" if group.deviation is None else f" ± {group.deviation:.1f}"
    return f"{group.mean:.1f}{deviation} ({len(group.runs)})"


def _columns(groups: Sequence[Group]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((group.task, group.model) for group in groups))


def _column_name(task: str, model: str, groups: Sequence[Group]) -> str:
    return task if len({g.model for g in groups}) == 1 else f"{task}, {model}"


def _by_label(groups: Sequence[Group]) -> dict[str, dict[tuple[str, str], Group]]:
    found: dict[str, dict[tuple[str, str], Group]] = {}
    for group in groups:
        found.setdefault(group.label, {})[group.task, group.model] = group
    return found
