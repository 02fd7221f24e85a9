"""The figures of a report, for print: colours that differ in grey too, and a marker for each."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from peft_smop.report import paper
from peft_smop.report.gathering import Group
from peft_smop.results import RunDirectory, writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#1b3a6b", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d", "#8c510a")
"""Okabe and Ito's, whose lightness differs; with markers and lines they make 88 series."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h")
LINES = ("-", "--", "-.", ":")
KINDS = ("png", "svg", "pdf")
MOST_BANDS = 5
"""Bands of more curves than that hide each other."""
MOST_CURVES = 12
"""More curves in one picture are a tangle: those of the best mean scores are drawn."""

LEAST_RATIO = 1.4
"""Of neighbouring ticks on a logarithmic axis."""


@dataclass(frozen=True)
class Picture:
    """A figure that was drawn."""

    name: str
    title: str
    svg: str


def draw_all(groups: Sequence[Group], folder: Path) -> list[Picture]:
    """Draw what the runs have, as PNG, SVG and PDF.

    Args:
        groups: finished runs.
        folder: where the files go.

    Raises:
        RunError: it cannot be written to.
        CheckpointError: a run's metrics are damaged.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = []
    style = {
        "svg.hashsalt": "smop",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.dpi": 150,
        "pdf.fonttype": 42,
    }
    with matplotlib.rc_context(style):
        for name, title, draw in FIGURES:
            figure = draw(groups)
            if figure is None:
                continue
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
                for kind in KINDS:
                    # without the date, so that the same runs give the same files
                    stamp = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
                    figure.savefig(folder / f"{name}.{kind}", metadata=stamp, bbox_inches="tight")
            text = io.StringIO()
            figure.savefig(text, format="svg", metadata={"Date": None}, bbox_inches="tight")
            pyplot.close(figure)
            drawn.append(Picture(name, title, text.getvalue()))
    return drawn


def _styles(labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A colour, a marker and a line of its own for each."""
    return {
        label: {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": LINES[i // len(COLOURS) % len(LINES)],
        }
        for i, label in enumerate(dict.fromkeys(labels))
    }


def _panels(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """The groups of each task and backbone, by what a panel is called."""
    several = len({g.model for g in groups}) > 1
    found: dict[str, list[Group]] = {}
    for group in groups:
        title = f"{group.task}, {group.model}" if several else group.task
        found.setdefault(title, []).append(group)
    return found


def _axes(count: int, *, width: float = 4.6, height: float = 3.4) -> tuple[Figure, Iterator[Any]]:
    from matplotlib import pyplot

    across = min(3, count)
    down = -(-count // across)
    figure, axes = pyplot.subplots(
        down, across, figsize=(width * across, height * down), layout="constrained", squeeze=False
    )
    for unused in axes.flat[count:]:
        unused.set_visible(False)
    return figure, iter(axes.flat)


def _legend(figure: Figure, axes: Any) -> None:
    """Below everything, so that it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        longest = max(map(len, labels))
        columns = max(1, min(len(labels), int(14 * figure.get_figwidth() / (longest + 6))))
        figure.legend(
            handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8
        )


def _spread_of_seeds(groups: Sequence[Group]) -> Figure:
    """Every seed's score, and the mean with its deviation."""
    panels = _panels(groups)
    most = max(len(own) for own in panels.values())
    figure, axes = _axes(len(panels), width=5.2, height=max(2.2, 0.28 * most + 1.1))
    for title, own in panels.items():
        ax = next(axes)
        for place, group in enumerate(own):
            ax.plot(group.scores, [place] * len(group.runs), "|", color="0.45", markersize=10)
            ax.errorbar(
                group.mean, place, xerr=group.deviation or 0.0, fmt="o", color=COLOURS[0],
                capsize=3, markersize=4.5,
            )  # fmt: skip
        majority = mean(r.result.test.majority for g in own for r in g.runs)
        ax.axvline(majority, color="0.6", linestyle=":", linewidth=1)
        ax.set_yticks(range(len(own)), [g.label for g in own], fontsize=8)
        ax.set_ylim(len(own) - 0.5, -0.5)
        ax.set_xlabel(f"test {own[0].runs[0].result.test.metric}, %")
        ax.set_title(title, fontsize=9)
    figure.supxlabel("bars: single seeds; points: mean ± sd; dotted: majority label", fontsize=8)
    return figure


def _curves(groups: Sequence[Group]) -> Figure | None:
    """Validation scores over steps: the mean over seeds; of few methods, lowest to highest too."""
    panels = _panels(groups)
    labels = list(dict.fromkeys(g.label for g in groups))
    best = sorted(labels, key=lambda label: -max(g.mean for g in groups if g.label == label))
    shown = [label for label in labels if label in best[:MOST_CURVES]]
    styles = _styles(shown)
    figure, axes = _axes(len(panels))
    last: Any = None
    for title, own in panels.items():
        last = next(axes)
        steps: set[int] = set()
        for group in own:
            if group.label not in shown:
                continue
            curve = _mean_curve(group)
            steps |= curve.keys()
            at = sorted(curve)
            means = [mean(curve[step]) for step in at]
            style = styles[group.label]
            last.plot(at, means, label=group.label, markersize=4, linewidth=1.3, **style)
            if len(group.runs) > 1 and len(shown) <= MOST_BANDS:
                low, high = ([f(curve[step]) for step in at] for f in (min, max))
                last.fill_between(at, low, high, color=style["color"], alpha=0.12, linewidth=0)
        if 0 < len(steps) <= 8:
            last.set_xticks(sorted(steps))  # where the evaluations are
        last.set_xlabel("training step")
        last.set_ylabel("validation score, %")
        last.set_title(title, fontsize=9)
    if last is None:
        return None
    _legend(figure, last)
    if len(shown) < len(labels):
        figure.suptitle(f"the best {len(shown)} of {len(labels)} by mean test score", fontsize=8)
    return figure


def _mean_curve(group: Group) -> dict[int, list[float]]:
    """By step the scores of all seeds; only steps at which every seed was evaluated."""
    found: dict[int, list[float]] = {}
    for run in group.runs:
        for entry in RunDirectory(run.path).read_metrics():
            if entry.get("eval_score") is not None:
                found.setdefault(int(entry["step"]), []).append(float(entry["eval_score"]))
    return {step: values for step, values in found.items() if len(values) == len(group.runs)}


def _score_and_cost(groups: Sequence[Group]) -> Figure | None:
    """Test score over the operations of a training example, and over the trained parameters."""
    labels = list(dict.fromkeys(g.label for g in groups))
    styles = _styles(labels)
    points = []
    for label in labels:
        runs = [r.result for g in groups if g.label == label for r in g.runs]
        known = [
            r.cost.training_gflops_per_example
            for r in runs
            if r.cost.training_gflops_per_example is not None
        ]
        if known:
            points.append((label, runs, mean(known)))
    if len(points) < 2:
        return None
    figure, axes = _axes(2, height=3.6)
    left, right = next(axes), next(axes)
    for label, runs, operations in points:
        score = mean(r.test.value for r in runs)
        spread = stdev([r.test.value for r in runs]) if len(runs) > 1 else 0.0
        style = {
            **styles[label],
            "linestyle": "none",
            "capsize": 2,
            "markersize": 6,
            "elinewidth": 0.9,
        }
        left.errorbar(operations, score, yerr=spread, label=label, **style)
        right.errorbar(runs[0].parameters.trainable, score, yerr=spread, label=label, **style)
    left.set_xlabel("GFLOPs of a training example, forward and backward")
    left.set_ylabel("mean test score, %")
    right.set_xlabel("trained parameters")
    right.set_xscale("log")
    _legend(figure, left)
    return figure


def _lengths(groups: Sequence[Group]) -> Figure | None:
    """Mean score of the mixture over the number and the length of its prompts."""
    grids: dict[tuple[Any, ...], dict[tuple[int, int], list[float]]] = {}
    for group in groups:
        options = dict(group.key)
        if options.get("name") != "smop":
            continue
        k, length = options.pop("num_prompts"), options.pop("num_virtual_tokens")
        grids.setdefault(tuple(sorted(options.items())), {}).setdefault((k, length), []).append(
            group.mean
        )
    grids = {
        key: grid
        for key, grid in grids.items()
        if len({k for k, _ in grid}) > 1 and len({length for _, length in grid}) > 1
    }
    if not grids:
        return None
    figure, axes = _axes(len(grids), width=4.4, height=3.6)
    for key, grid in grids.items():
        ax = next(axes)
        ks, lengths = sorted({k for k, _ in grid}), sorted({length for _, length in grid})
        table = [
            [mean(grid[k, length]) if (k, length) in grid else float("nan") for length in lengths]
            for k in ks
        ]
        image = ax.imshow(table, cmap="cividis", aspect="auto")
        known = [v for row in table for v in row if v == v]
        middle = (min(known) + max(known)) / 2
        for i, row in enumerate(table):
            for j, value in enumerate(row):
                said = "missing" if value != value else f"{value:.1f}"
                dark = value == value and value < middle
                ax.text(j, i, said, ha="center", va="center", color="white" if dark else "black",
                        fontsize=8)  # fmt: skip
        ax.set_xticks(range(len(lengths)), [str(length) for length in lengths])
        ax.set_yticks(range(len(ks)), [str(k) for k in ks])
        ax.set(xlabel="length of a prompt, l", ylabel="number of prompts, k")
        ax.set_title(paper.label_of(key), fontsize=9)
        ax.spines[:].set_visible(False)
        figure.colorbar(image, ax=ax, label="mean test score, %")
    return figure


def _figure1(groups: Sequence[Group]) -> Figure | None:
    """The paper's Figure 1: score and memory over the total length of the prompts."""
    series: dict[str, dict[int, list[Group]]] = {}
    for group in groups:
        options = dict(group.key)
        name, length = options["name"], options.get("num_virtual_tokens", 0)
        if name == "prompt-tuning":
            series.setdefault("prompt tuning", {}).setdefault(length, []).append(group)
        elif name == "smop" and len(options) == 3:
            total = options["num_prompts"] * length
            series.setdefault(f"SMoP, l={length}", {}).setdefault(total, []).append(group)
    series = {name: found for name, found in series.items() if len(found) > 1}
    if "prompt tuning" not in series or len(series) < 2:
        return None
    styles = _styles(list(series))
    figure, axes = _axes(2)
    left, right = next(axes), next(axes)
    for name, found in series.items():
        at = sorted(found)
        left.plot(
            at, [mean(g.mean for g in found[n]) for n in at], label=f"{name} (ours)", **styles[name]
        )
        memory = {n: _memory(found[n]) for n in at}
        known = [n for n in at if memory[n] is not None]
        if known:
            right.plot(known, [memory[n] for n in known], label=f"{name} (ours)", **styles[name])
    for name, key in (("Prompt Tuning", "prompt-tuning"), ("SMoP", "smop")):
        points = sorted(
            (f.total_length, f.mean)
            for f in paper.figures()
            if f.table == "7" and f.task == "rte" and dict(f.key)["name"] == key
            and f.total_length is not None
            and (key != "smop" or dict(f.key)["num_virtual_tokens"] == 5)
        )  # fmt: skip
        left.plot(
            [n for n, _ in points], [score for _, score in points], color="0.65",
            linestyle="--" if key == "smop" else "-", marker=".", linewidth=1,
            label=f"{name} (the paper, RTE)",
        )  # fmt: skip
    for ax in (left, right):
        ax.set_xlabel("total length of the prompts, tokens")
        ax.set_xscale("log")
        ticks = legible(sorted({n for found in series.values() for n in found}))
        ax.set_xticks(ticks, [str(n) for n in ticks])
        ax.minorticks_off()
    left.set_ylabel("test score, %")
    right.set_ylabel("peak memory of training, MiB")
    _legend(figure, left)
    return figure


def legible(values: Sequence[int]) -> list[int]:
    """Those of rising values whose labels do not touch on a logarithmic axis."""
    kept: list[int] = []
    for value in values:
        if not kept or value >= LEAST_RATIO * kept[-1]:
            kept.append(value)
    return kept


def _memory(groups: Sequence[Group]) -> float | None:
    known = [
        r.result.cost.peak_memory_mib
        for g in groups
        for r in g.runs
        if r.result.cost.peak_memory_mib is not None
    ]
    return mean(known) if known else None


FIGURES: tuple[tuple[str, str, Callable[[Sequence[Group]], Any]], ...] = (
    ("seeds", "Test score of every seed", _spread_of_seeds),
    ("curves", "Validation score while training, mean and range over seeds", _curves),
    ("cost", "Test score against cost", _score_and_cost),
    ("lengths", "Number and length of prompts", _lengths),
    ("figure1", "Score and memory over the total length, after the paper's Figure 1", _figure1),
)
TITLES: Mapping[str, str] = {name: title for name, title, _ in FIGURES}
