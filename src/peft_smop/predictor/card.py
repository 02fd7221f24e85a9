"""The model card of an adapter: what it is, how good, at what cost, and how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft_smop.tasks import Task


def model_card(task: Task, result: Mapping[str, Any]) -> str:
    """Write the card of a run's adapter; no path of the machine that trained it is in it.

    Args:
        task: what it was trained for.
        result: as `result.json` holds it.
    """
    model, method = str(result["model"]), str(result["method"]["name"])
    local = Path(model).is_absolute() or Path(model).exists()
    public = Path(model).name if local else model
    labels = ", ".join(
        label if label == word else f"{label} (answered as {word})"
        for label, word in zip(task.labels, task.verbalizers, strict=True)
    )
    lines = [
        "---",
        "library_name: peft",
        *([] if local or public == "embedded" else [f"base_model: {public}"]),
        f"tags: [peft-smop, {method}]",
        "---",
        "",
        f"# {task.name}: {method} on {public}",
        "",
        f"- Template: `{task.template}`",
        f"- Labels: {labels}",
        *_scores(result),
        *_routing(result),
        *_split(result),
        *_cost(result),
        "",
        "## Use",
        "",
        "```python",
        "from peft_smop import Predictor",
        "",
        'predictor = Predictor.load("DIRECTORY")  # where this file lies',
        f"answer = predictor.predict([{_call(task)}])[0]",
        "print(answer.label, answer.probabilities, answer.prompt)",
        "```",
    ]
    return "\n".join(lines) + "\n"


def _call(task: Task) -> str:
    if len(task.fields) == 1:
        return '"a text"'
    return "{" + ", ".join(f'"{field}": "a text"' for field in task.fields) + "}"


def _scores(result: Mapping[str, Any]) -> list[str]:
    test = result["test"]
    return [
        f"- Test {test['metric']} {test['value']:.1f} (95 % interval over examples"
        f" {test['low']:.1f} to {test['high']:.1f}; {test['examples']} examples; always the"
        f" majority label: {test['majority']:.1f}); seed {result['seed']}, one run",
    ]


def _routing(result: Mapping[str, Any]) -> list[str]:
    routing = result.get("routing")
    return [f"- Certificate, on validation examples: {routing['verdict']}"] if routing else []


def _split(result: Mapping[str, Any]) -> list[str]:
    return [f"- Split, SHA-256 of {part}: `{sha}`" for part, sha in result["split"].items()]


def _cost(result: Mapping[str, Any]) -> list[str]:
    parameters = result["parameters"]
    lines = [
        f"- Trained {parameters['trainable']:,} parameters, {parameters['percentage']:.4f} % of"
        f" all, for {result['training']['steps']} steps"
    ]
    cost = result.get("cost") or {}
    if cost.get("seconds_per_100_steps") is not None:
        lines[0] += f", {cost['seconds_per_100_steps']:.1f} s for 100 steps"
    if cost.get("training_gflops_per_example") is not None:
        lines[0] += f", {cost['training_gflops_per_example']:.3g} GFLOPs an example"
    return lines
