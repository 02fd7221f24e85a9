"""The figure of a certificate: loads, scores, and which rows go to which prompt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

WHO = {
    "router": "the router's choice",
    "single": "best single prompt",
    "uniform": "mean of all prompts",
    "random": "random prompts",
    "bound": "best prompt of each row",
}
"""Who chooses the prompt, in the order in which it is told."""


def draw_routes(certificate: Mapping[str, Any], path: Path, *, title: str) -> None:
    """Draw a certificate.

    Args:
        certificate: as `smop routes` writes it.
        path: of the picture; its ending says the kind.
        title: above it.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    what = "population" if "population" in certificate["table"] else "label"
    table: Mapping[str, list[float]] = certificate["table"][what]
    k = len(certificate["load"])
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(11, max(3.2, 0.28 * len(table) + 1.2)), layout="constrained",
        width_ratios=(1, 1.3, 1.6),
    )  # fmt: skip
    left.bar(range(k), [100 * part for part in certificate["load"]], color="0.45")
    left.axhline(100 / k, color="0.7", linewidth=0.8, linestyle="--")
    left.set(xlabel="prompt", ylabel="rows, %", title="load", xticks=range(k))
    for place, who in enumerate(WHO):
        own = certificate[who]
        middle.plot([own["low"], own["high"]], [place, place], color="0.3", linewidth=1.5)
        middle.plot(own["value"], place, "o", color="0.1", markersize=5)
    middle.set(yticks=range(len(WHO)), yticklabels=list(WHO.values()), title="score by who chooses")
    middle.invert_yaxis()
    middle.set_xlabel(f"{certificate['metric']}, %, with 95 % intervals")
    image = right.imshow(
        [[100 * part for part in row] for row in table.values()],
        aspect="auto", cmap="Greys", vmin=0, vmax=100,
    )  # fmt: skip
    right.set(
        yticks=range(len(table)), yticklabels=list(table), xticks=range(k), xlabel="prompt",
        title=f"which {what} goes where",
    )  # fmt: skip
    figure.colorbar(image, ax=right, label=f"rows of the {what}, %")
    figure.suptitle(title)
    figure.savefig(path, dpi=160)
    plt.close(figure)
