"""Methods side by side: mean and spread over seeds, and a picture of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from statistics import mean, median, stdev

from peft_smop.errors import CheckpointError, RunError
from peft_smop.report.significance import Difference, holm, paired_bootstrap
from peft_smop.results import RunDirectory


@dataclass(frozen=True)
class Row:
    """One method's runs."""

    name: str
    scores: tuple[float, ...]
    validation: tuple[float, ...]
    seconds: tuple[float, ...]
    learning_rate: float
    trainable: int
    allocated: int
    percentage: float
    metric: str
    examples: int
    majority: float
    load: tuple[float, ...]
    """Mean load of each prompt over the seeds, sorted; empty for methods without a choice."""
    seconds_per_100_steps: float | None
    """Median over seeds."""
    peak_memory_mib: float | None
    """Median over seeds."""
    training_gflops_per_example: float | None
    alarms: tuple[str, ...]
    """What was noticed, with the number of seeds in which it was."""
    worth: tuple[tuple[float, float] | None, ...] = ()
    """Of the routing on validation examples, by seed: the 95 % interval over the best single prompt
    of the same adapter, in points; None: without a router, or by a release that did not say."""
    difference: Difference | None = None
    """Against the first method, its p-value corrected for the number of methods."""
    wins: int | None = None
    """In how many seeds it scored higher than the first method."""

    @property
    def mean(self) -> float:
        """Mean test score over seeds."""
        return mean(self.scores)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over seeds; None for one seed."""
        return stdev(self.scores) if len(self.scores) > 1 else None

    @property
    def verdict(self) -> str:
        """What may be said against the first method, and whether every seed says it."""
        if self.difference is None or self.wins is None:
            return "the first"
        words = self.difference.words
        agreeing = self.wins if words == "better" else len(self.scores) - self.wins
        if words == "not significant" or len(self.scores) == 1 or agreeing == len(self.scores):
            return words
        return f"{words}, seeds disagree"

    @property
    def spread(self) -> str:
        """Mean and standard deviation, as they are printed."""
        return f"{self.mean:.1f}" + ("" if self.deviation is None else f" ± {self.deviation:.1f}")


def compare(groups: Mapping[str, Sequence[Path]]) -> list[Row]:
    """Read the results of finished runs; the first method is what the others are held against.

    Args:
        groups: a method's name for people -> its runs' directories, one for each seed.

    Raises:
        RunError: they were not tested on the same examples.
    """
    rows = [_row(name, paths) for name, paths in groups.items()]
    if len(rows) < 2:
        return rows
    outcomes = [outcomes_of(paths) for paths in groups.values()]
    for row, other in zip(rows[1:], outcomes[1:], strict=True):
        if _truth(other) != _truth(outcomes[0]):
            raise RunError(
                f"{row.name} and {rows[0].name} were not tested on the same examples with the same"
                " seeds, so they cannot be compared; run them again on the same data"
            )
    first = next(iter(groups.values()))[0]
    labels = len(labels_of(RunDirectory(first)))
    found = [
        paired_bootstrap(outcomes[0], other, metric=rows[0].metric, labels=labels)
        for other in outcomes[1:]
    ]
    corrected = holm([difference.p for difference in found])
    return [
        rows[0],
        *(
            replace(
                row,
                difference=replace(difference, p=p),
                wins=sum(a > b for a, b in zip(row.scores, rows[0].scores, strict=True)),
            )
            for row, difference, p in zip(rows[1:], found, corrected, strict=True)
        ),
    ]


def _row(name: str, paths: Sequence[Path]) -> Row:
    results = [RunDirectory(path).read_result() for path in paths]
    loads = [sorted(r.test.load, reverse=True) for r in results]
    alarms = Counter(alarm.split(":")[0] for r in results for alarm in r.test.alarms)
    first = results[0]
    return Row(
        name=name,
        scores=tuple(r.test.value for r in results),
        validation=tuple(r.validation.score for r in results),
        seconds=tuple(r.training.seconds for r in results),
        learning_rate=first.training.learning_rate,
        trainable=first.parameters.trainable,
        allocated=first.parameters.allocated,
        percentage=first.parameters.percentage,
        metric=first.test.metric,
        examples=first.test.examples,
        majority=mean(r.test.majority for r in results),
        load=tuple(mean(parts) for parts in zip_longest(*loads, fillvalue=0.0)),
        seconds_per_100_steps=_median(r.cost.seconds_per_100_steps for r in results),
        peak_memory_mib=_median(r.cost.peak_memory_mib for r in results),
        training_gflops_per_example=first.cost.training_gflops_per_example,
        alarms=tuple(f"{alarm} in {n} of {len(results)}" for alarm, n in alarms.items()),
        worth=tuple(
            None if r.routing is None else (r.routing.worth.low, r.routing.worth.high)
            for r in results
        ),
    )


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _truth(outcomes: Mapping[tuple[int, str], tuple[int, int]]) -> dict[tuple[int, str], int]:
    return {key: label for key, (label, _) in outcomes.items()}


def labels_of(run: RunDirectory) -> list[str]:
    """The labels of a run's task.

    Raises:
        CheckpointError: its record is damaged.
    """
    labels = run.read_task().get("labels")
    if not isinstance(labels, list) or not labels:
        raise CheckpointError(f"{run.task} cannot be read as a task: no labels")
    return labels


def outcomes_of(paths: Sequence[Path]) -> dict[tuple[int, str], tuple[int, int]]:
    """Every test example of every seed: its label and what was predicted.

    Raises:
        CheckpointError: predictions cannot be read.
    """
    found = {}
    for path in paths:
        run = RunDirectory(path)
        seed = run.read_result().seed
        place = {label: i for i, label in enumerate(labels_of(run))}
        for row in run.read_predictions():
            try:
                found[seed, str(row["id"])] = (place[row["label"]], place[row["prediction"]])
            except (KeyError, TypeError) as error:
                raise CheckpointError(
                    f"{run.predictions} cannot be read as predictions: no {error} where one should"
                    " be"
                ) from error
    return found


def draw(groups: Mapping[str, Sequence[Path]], path: Path, *, title: str) -> None:
    """Draw validation curves and test scores of every run.

    Args:
        groups: as for `compare`.
        path: the picture, PNG or SVG by its ending.
        title: above the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = compare(groups)
    height = max(4.0, 0.4 * len(rows) + 1.5)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, height), width_ratios=(3, 2))
    for place, (row, paths) in enumerate(zip(rows, groups.values(), strict=True)):
        colour = f"C{place}"
        for number, run in enumerate(paths):
            points = [e for e in RunDirectory(run).read_metrics() if "eval_score" in e]
            left.plot(
                [p["step"] for p in points],
                [p["eval_score"] for p in points],
                color=colour,
                alpha=0.7,
                linewidth=1.2,
                marker=".",
                label=row.name if number == 0 else None,
            )
        right.errorbar(
            row.mean,
            place,
            xerr=row.deviation or 0.0,
            fmt="o",
            color=colour,
            capsize=4,
            markersize=7,
        )
        right.plot(row.scores, [place + 0.18] * len(row.scores), "|", color=colour, markersize=9)
    right.axvline(rows[0].majority, color="0.5", linestyle=":", linewidth=1)
    right.set_yticks(range(len(rows)), [row.name for row in rows])
    right.invert_yaxis()
    right.set_xlabel(f"test score, % (n = {rows[0].examples})")
    seeds = len(rows[0].scores)
    right.set_title(
        f"mean ± sd of {seeds} seeds, ticks: single runs, dotted: majority label"
        if seeds > 1
        else "one seed, dotted: majority label",
        fontsize=8,
    )
    left.set_xlabel("training step")
    left.set_ylabel("validation score, %")
    left.xaxis.get_major_locator().set_params(integer=True)
    left.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.15), ncols=3)
    figure.suptitle(title)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
