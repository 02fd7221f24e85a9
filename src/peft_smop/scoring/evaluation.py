"""Run a model over examples and look at what came out: scores, predictions, routes, and alarms."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from peft_smop.errors import RunError
from peft_smop.names import MAX_PADDING
from peft_smop.rows import cut
from peft_smop.scoring.formulation import Features, Formulation, LabelScores, told
from peft_smop.scoring.metrics import Score, score
from peft_smop.tasks import Example
from peft_smop.tuner import Routes, SMoPModel
from peft_smop.tuner.layer import Adapter

COLLAPSED_SHARE = 0.98
DEAD_LOAD = 0.01
KEPT_BUDGET = 2**28
"""Most numbers that a pass keeps for its rows' labels, logits and caches: 1 GiB in fp32."""


@dataclass(frozen=True)
class Prediction:
    """What the model said of one example."""

    example: Example
    label: int
    log_probabilities: tuple[float, ...]
    prompt: int | None = None
    """The prompt chosen by the router; None for methods that choose none."""
    prompt_probability: float | None = None


@dataclass(frozen=True)
class Asked:
    """An example, how its task is put to the model, and the adapter that its row follows."""

    example: Example
    formulation: Formulation
    adapter: str | None = None
    """None: the active one."""


def predict(
    model: nn.Module,
    formulation: Formulation,
    examples: Sequence[Example],
    *,
    batch_size: int = 32,
    on_batch: Callable[[int], None] | None = None,
) -> list[Prediction]:
    """Score every label of every example of one task.

    Args:
        model: a PEFT model or a bare one; it is put into evaluation mode and back.
        formulation: how the task is put to this kind of model.
        examples: what to predict; labels are not looked at.
        batch_size: examples in a pass, fewer where what is kept would not fit `KEPT_BUDGET`.
        on_batch: called with the number of examples done in each batch.

    Raises:
        RunError: a score is not a number.
    """
    rows = [Asked(example, formulation) for example in examples]
    return predict_rows(model, rows, batch_size=batch_size, on_batch=on_batch)


def predict_rows(
    model: nn.Module,
    asked: Sequence[Asked],
    *,
    batch_size: int = 32,
    on_batch: Callable[[int], None] | None = None,
) -> list[Prediction]:
    """Score every label of every row, each with its own task and adapter.

    Rows are batched by length, longest first, so that running out of memory shows at once, and
    come back in the order given. A batch that padding would make `MAX_PADDING` times its text goes
    in several passes.

    Args:
        model: a PEFT model or a bare one; it is put into evaluation mode and back.
        asked: the rows; either all name their adapter or none does, and all are put to one kind of
            model.
        batch_size: rows in a pass, fewer where what is kept would not fit `KEPT_BUDGET`.
        on_batch: called with the number of rows done in each batch.

    Raises:
        RunError: a score is not a number.
    """
    formulations = list(dict.fromkeys(row.formulation for row in asked))
    features = [row.formulation.encode(row.example) for row in asked]
    if len(formulations) > 1:
        features = [
            {**f, "answers": row.formulation.answers}
            for f, row in zip(features, asked, strict=True)
        ]
    found: list[Prediction | None] = [None] * len(asked)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            waiting = deque(_batches(model, formulations, asked, features, batch_size))
            while waiting:
                batch = waiting.popleft()
                own = [features[i] for i in batch]
                names = [name for i in batch if (name := asked[i].adapter) is not None]
                scores = _scores(model, formulations[0], own, names)
                if scores is None:
                    waiting.extendleft(reversed(_halves(batch, model, asked)))
                    continue
                named = _named(getattr(model, "last_routes", None))
                rows = scores.log_probabilities.tolist()
                for place, i in enumerate(batch):
                    route = named[place * scores.repeats] if named else None
                    said = rows[place][: len(asked[i].formulation.task.labels)]
                    if any(math.isnan(one) for one in said):
                        raise RunError(
                            "the model's scores are not numbers: its weights or its precision"
                            " broke; lower the learning rate, or use --precision fp32"
                        )
                    found[i] = Prediction(
                        example=asked[i].example,
                        label=max(range(len(said)), key=said.__getitem__),
                        log_probabilities=tuple(said),
                        prompt=None if route is None else route[0],
                        prompt_probability=None if route is None else route[1],
                    )
                if on_batch:
                    on_batch(len(batch))
    finally:
        model.train(was_training)
    return [prediction for prediction in found if prediction is not None]


def _scores(
    model: nn.Module, formulation: Formulation, features: Sequence[Features], names: Sequence[str]
) -> LabelScores | None:
    """The scores of a batch; None: the device's memory does not hold it."""
    try:
        with told(model, features):
            return formulation.label_scores(
                cast("nn.Module", Following(model, names)) if names else model, features
            )
    except torch.OutOfMemoryError:
        pass
    torch.cuda.empty_cache()  # only here, as the error keeps what was computed alive
    return None


def _halves(batch: list[int], model: nn.Module, asked: Sequence[Asked]) -> list[list[int]]:
    """A batch in two.

    Raises:
        RunError: it cannot be divided.
    """
    if len(batch) == 1 or _rows_see_each_other(model, asked):
        raise RunError(
            f"the device's memory does not hold {len(batch)} rows to be scored together; lower"
            " --max-length, or free the device"
        )
    middle = (len(batch) + 1) // 2
    return [batch[:middle], batch[middle:]]


def _rows_see_each_other(model: nn.Module, asked: Sequence[Asked]) -> bool:
    layer = getattr(model, "smop_layer", None)
    names = {row.adapter for row in asked if row.adapter is not None}
    return layer is not None and not layer.rows_are_independent(names or model.active_adapters)


class Following:
    """A model whose passes have rows that follow adapters by name; all else is the model's own."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self._model = model
        self._names = list(names)

    def __call__(self, **batch: Any) -> Any:
        """The model's pass; rows may stand there several times, next to each other."""
        count = len(next(batch[key] for key in ("input_ids", "attention_mask") if key in batch))
        repeats = count // len(self._names)
        names = [name for name in self._names for _ in range(repeats)]
        return self._model(**batch, adapter_names=names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _named(routes: Routes | None) -> list[tuple[int, float] | None]:
    """Every row's prompt and its probability; None where all are mixed alike, and none is named.

    The router's probability, whatever scale the prompt has; without a router the scale, 1. In a
    mixed batch there are no logits (NaN) for prompts that a row's adapter does not have.
    """
    if routes is None:
        return []
    own_prompt = ~routes.logits.isnan()
    logits = routes.logits.masked_fill(~own_prompt, -math.inf)
    own = logits.softmax(dim=-1).gather(1, routes.chosen.clamp(min=0)[:, None])
    unscored = ((routes.logits == 0) | ~own_prompt).all(dim=-1, keepdim=True)
    said = torch.where(unscored, routes.probabilities[:, :1], own)
    pairs = zip(routes.chosen.tolist(), said[:, 0].tolist(), strict=True)
    return [(prompt, probability) if prompt >= 0 else None for prompt, probability in pairs]


def _batches(
    model: nn.Module,
    formulations: Sequence[Formulation],
    asked: Sequence[Asked],
    features: Sequence[Features],
    batch_size: int,
) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first.

    Batches are cut where they would be padded much, unless a row is seen by the others in its pass.
    """
    lengths = [len(f["input_ids"]) for f in features]
    limit = math.inf if _rows_see_each_other(model, asked) else MAX_PADDING
    # rows of one pass have verdicts of one shape
    shapes = [row.formulation.verdicts for row in asked]
    for shape in dict.fromkeys(shapes):
        order = [i for i in range(len(features)) if shapes[i] == shape]
        order.sort(key=lambda i: -lengths[i])
        while order:
            row = max(one.kept_by_row(model, lengths[order[0]]) for one in formulations)
            size = min(batch_size, max(1, KEPT_BUDGET // row)) if row else batch_size
            batch = order[:size]
            parts = cut([lengths[i] for i in batch], limit)
            yield from ([batch[i] for i in part] for part in parts)
            order = order[size:]


@dataclass(frozen=True)
class Evaluation:
    """Predictions with everything that is said about them."""

    predictions: tuple[Prediction, ...]
    score: Score
    loss: float
    """Mean negative log-probability of the true label."""
    load: tuple[float, ...]
    """Share of rows that each prompt got; empty for methods without a choice."""
    alarms: tuple[str, ...]


def evaluate(
    model: nn.Module,
    formulation: Formulation,
    examples: Sequence[Example],
    *,
    majority_label: int,
    revives: bool = False,
    batch_size: int = 32,
    resamples: int = 1000,
    on_batch: Callable[[int], None] | None = None,
) -> Evaluation:
    """Predict and score labelled examples.

    Args:
        model: the model.
        formulation: how the task is put to it.
        examples: labelled examples.
        majority_label: the training data's most common label.
        revives: whether the training revived dead prompts, so that nobody is advised to try it.
        batch_size: examples in a pass.
        resamples: of the bootstrap interval; 0 where nobody looks at it.
        on_batch: called with the number of examples done in each batch.

    Raises:
        RunError: there are no examples, or a score is not a number.
    """
    if not examples:
        raise RunError("there are no examples to score in this part of the data")
    predictions = predict(model, formulation, examples, batch_size=batch_size, on_batch=on_batch)
    truth = [example.label for example in examples if example.label is not None]
    task = formulation.task
    counts = Counter(p.prompt for p in predictions if p.prompt is not None)
    adapter = SMoPModel.adapter_of(model)
    k = adapter.prompts.shape[0] if adapter is not None and adapter.strategy.chooses else 0
    load = tuple(counts[j] / len(predictions) for j in range(k))
    return Evaluation(
        predictions=tuple(predictions),
        score=score(
            task.metric,
            truth,
            [p.label for p in predictions],
            labels=len(task.labels),
            majority_label=majority_label,
            resamples=resamples,
        ),
        loss=-sum(p.log_probabilities[y] for p, y in zip(predictions, truth, strict=True))
        / len(truth),
        load=load,
        alarms=(
            *_collapse(formulation, predictions, truth),
            *_dead_prompts(load, adapter, revives=revives),
        ),
    )


def _collapse(
    formulation: Formulation, predictions: Sequence[Prediction], truth: Sequence[int]
) -> Iterator[str]:
    """Say so where one answer is given to nearly everything."""
    label, count = Counter(p.label for p in predictions).most_common(1)[0]
    share = count / len(predictions)
    if share >= COLLAPSED_SHARE and Counter(truth)[label] / len(truth) < share:
        yield (
            f"collapsed: {share:.0%} of the predictions are"
            f" {formulation.task.verbalizers[label]!r}; the score is that of a constant answer"
        )


def _dead_prompts(
    load: Sequence[float], adapter: Adapter | None, *, revives: bool
) -> Iterator[str]:
    """Say so where prompts get no rows, and what may help."""
    dead = [j for j, part in enumerate(load) if part < DEAD_LOAD]
    if len(load) > 1 and dead:
        yield (
            f"dead prompts: {len(dead)} of {len(load)} get less than {DEAD_LOAD:.0%} of the rows"
            f" (number {_some(dead)}, counted from 0){_remedy(adapter, revives=revives)}"
        )


def _remedy(adapter: Adapter | None, *, revives: bool) -> str:
    """What may be done about dead prompts, and was not yet; nothing where no router is trained."""
    if adapter is None or adapter.router is None:
        return ""
    if adapter.strategy.judges:  # it was told of every prompt, and has no use for these
        return "; fewer may do, --num-prompts"
    again = [] if revives else ["--revive-dead-prompts"]
    return f"; train with {' or '.join(['--method smop-posterior', *again])}"


def _some(numbers: Sequence[int], most: int = 8) -> str:
    """The first few numbers, and whether there are more."""
    shown = ", ".join(map(str, numbers[:most]))
    return shown if len(numbers) <= most else f"{shown} and {len(numbers) - most} more"
