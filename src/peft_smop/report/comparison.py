"""Methods side by side: mean and spread over seeds, and a picture of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any


@dataclass(frozen=True)
class Row:
    """One method's runs."""

    name: str
    scores: tuple[float, ...]
    validation: tuple[float, ...]
    seconds: tuple[float, ...]
    trainable: int
    percentage: float
    examples: int
    majority: float
    load: tuple[float, ...]
    """Mean load of each prompt over the seeds, sorted; empty for methods without a choice."""

    @property
    def mean(self) -> float:
        """Mean test score over seeds."""
        return mean(self.scores)

    @property
    def deviation(self) -> float:
        """Sample standard deviation over seeds; 0 for one seed."""
        return stdev(self.scores) if len(self.scores) > 1 else 0.0


def compare(groups: Mapping[str, Sequence[Path]]) -> list[Row]:
    """Read the results of finished runs.

    Args:
        groups: a method's name for people -> its runs' directories, one for each seed.
    """
    rows = []
    for name, paths in groups.items():
        results: list[dict[str, Any]] = [
            json.loads((path / "result.json").read_text(encoding="utf-8")) for path in paths
        ]
        loads = [sorted(r["test"]["load"], reverse=True) for r in results]
        rows.append(
            Row(
                name=name,
                scores=tuple(r["test"]["value"] for r in results),
                validation=tuple(r["validation"]["score"] for r in results),
                seconds=tuple(r["training"]["seconds"] for r in results),
                trainable=results[0]["parameters"]["trainable"],
                percentage=results[0]["parameters"]["percentage"],
                examples=results[0]["test"]["examples"],
                majority=results[0]["test"]["majority"],
                load=tuple(mean(parts) for parts in zip(*loads, strict=True)),
            )
        )
    return rows


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
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), width_ratios=(3, 2))
    for place, (row, paths) in enumerate(zip(rows, groups.values(), strict=True)):
        colour = f"C{place}"
        for number, run in enumerate(paths):
            lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            points = [entry for entry in map(json.loads, lines) if "eval_score" in entry]
            left.plot(
                [p["step"] for p in points],
                [p["eval_score"] for p in points],
                color=colour,
                alpha=0.7,
                linewidth=1.2,
                label=row.name if number == 0 else None,
            )
        right.errorbar(
            row.mean, place, xerr=row.deviation, fmt="o", color=colour, capsize=4, markersize=7
        )
        right.plot(row.scores, [place + 0.18] * len(row.scores), "|", color=colour, markersize=9)
    right.axvline(rows[0].majority, color="0.5", linestyle=":", linewidth=1)
    right.set_yticks(range(len(rows)), [row.name for row in rows])
    right.invert_yaxis()
    right.set_xlabel(f"test score, % (n = {rows[0].examples}; dotted: majority label)")
    right.set_title("mean ± sd over seeds; ticks: single runs", fontsize=9)
    left.set_xlabel("training step")
    left.set_ylabel("validation score, %")
    left.legend(frameon=False, fontsize=9)
    figure.suptitle(title)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
