"""One run: from a specification to a trained, saved, evaluated adapter."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from peft_smop.errors import ConfigError, RunError, SMoPError
from peft_smop.lab.operations import training_operations
from peft_smop.lab.prepare import Prepared, load_task_of, prepare
from peft_smop.lab.record import (
    environment,
    learning_rate,
    predictions_as_rows,
    result_of,
)
from peft_smop.lab.spec import RunSpec
from peft_smop.lab.store import RunDirectory, write_json, write_jsonl
from peft_smop.lab.worth import examples_to_certify, routing_worth
from peft_smop.methods import virtual_tokens
from peft_smop.predictor import Beside, located, model_card, save_beside
from peft_smop.scoring import (
    Evaluation,
    evaluate,
    majority_label,
)
from peft_smop.tasks import Split, Task
from peft_smop.training import (
    Fit,
    ProgressBar,
    Training,
    TrainingOptions,
    bars,
    fit,
    fit_packed,
    last_complete_checkpoint,
    share_backbone,
)
from peft_smop.tuner import SMoPModel

NEIGHBOURS = (
    "rows not independent: with routing 'released' predictions depend on the other rows of a batch"
)


def run(
    spec: RunSpec,
    output: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
    title: str | None = None,
    certified: bool = False,
) -> dict[str, Any]:
    """Train, choose by validation, test once, save.

    Args:
        spec: what to do.
        output: the run's directory.
        resume: go on with the unfinished run in `output`; a finished one returns its result.
        overwrite: delete what is in `output` and start again.
        console: where to say how it goes; quiet by default.
        title: what the run is called there; its method's name by default.
        certified: also say what the routing is worth, where the method has a router: `routing` in
            the result. It takes k + 1 evaluations of validation examples, which is why runs that
            are compared with others, and so answer the question better, go without.

    Returns:
        The content of `result.json`.

    Raises:
        SMoPError: the specification, the data, the model or the directory are not usable.
    """
    console = console or Console(quiet=True)
    begun = _begin(spec, output, resume=resume, overwrite=overwrite)
    if isinstance(begun, dict):
        return begun
    with bars(console) as progress:
        fitted = fit(begun.training(title or spec.method.name, progress, resume=resume))
    return begun.finish(fitted, console, certified=certified)


def run_packed(
    specs: Sequence[RunSpec],
    outputs: Sequence[Path],
    *,
    resume: bool = False,
    console: Console | None = None,
    titles: Sequence[str] | None = None,
) -> list[dict[str, Any] | SMoPError]:
    """Train several runs of one task and backbone at once; each ends as `run` would end it.

    A run is tested and saved as soon as it has ended, whatever becomes of the others.

    Args:
        specs: what to do; of the SMoP family, as `fit_packed` takes them.
        outputs: the runs' directories.
        resume: go on with unfinished runs; finished ones return their results.
        console: where to say how it goes; quiet by default.
        titles: what the runs are called there.

    Returns:
        For every run the content of its `result.json`, or the error that ended it.

    Raises:
        SMoPError: as for `run`, before any training; or the runs cannot share a pass.
    """
    console = console or Console(quiet=True)
    results: dict[int, dict[str, Any] | SMoPError] = {}
    begun: dict[int, _Begun] = {}
    for place, (spec, output) in enumerate(zip(specs, outputs, strict=True)):
        started = _begin(spec, output, resume=resume and output.is_dir())
        if isinstance(started, dict):
            results[place] = started
            continue
        begun[place] = started
        # at once, so that no more than two backbones are ever held
        share_backbone(next(iter(begun.values())).prepared.model, started.prepared.model)
    places = list(begun)

    def on_end(number: int, outcome: Fit | SMoPError) -> None:
        place = places[number]
        results[place] = (
            outcome
            if isinstance(outcome, SMoPError)
            else begun[place].finish(outcome, console, packed=len(places))
        )

    with bars(console) as progress:
        names = titles or [spec.method.name for spec in specs]
        trainings = [
            one.training(names[place], progress, resume=resume) for place, one in begun.items()
        ]
        if trainings:
            fit_packed(trainings, on_end=on_end)
    return [results[place] for place in range(len(specs))]


@dataclass(frozen=True)
class _Begun:
    """A run whose directory is written and whose training may begin."""

    spec: RunSpec
    prepared: Prepared
    directory: RunDirectory
    resumed: bool
    started: float

    def training(self, title: str, progress: Progress, *, resume: bool) -> Training:
        prepared, spec = self.prepared, self.spec
        return Training(
            model=prepared.model,
            formulation=prepared.formulation,
            train=prepared.train,
            validation=prepared.split.validation,
            options=_with_rate(spec),
            seed=spec.seed,
            output=self.directory.checkpoints,
            resume=resume,
            callbacks=[ProgressBar(progress, f"{prepared.task.name} {title} seed {spec.seed}")],
        )

    def finish(
        self, fitted: Fit, console: Console, *, packed: int = 1, certified: bool = False
    ) -> dict[str, Any]:
        """Test, save, and write the result last of all."""
        prepared, directory, spec = self.prepared, self.directory, self.spec
        seconds = time.monotonic() - self.started
        if fitted.truncated:
            console.print(
                f"{fitted.truncated} of {len(prepared.train)} training inputs are longer than"
                f" {prepared.formulation.max_length} tokens and were cut"
            )
        evaluation = test_once(prepared, revives=spec.training.revive_dead_prompts)
        if spec.method.routing == "released":
            evaluation = replace(evaluation, alarms=(*evaluation.alarms, NEIGHBOURS))
        _save(prepared, directory.adapter, spec)
        write_jsonl(directory.metrics, fitted.history)
        rows = predictions_as_rows(prepared.task, evaluation.predictions)
        write_jsonl(directory.predictions, rows)
        result = result_of(spec, prepared, fitted, evaluation)
        result["training"] |= {
            "seconds": round(seconds, 1),
            "resumed": self.resumed,
            "packed": packed,
        }
        adapter = SMoPModel.adapter_of(prepared.model) if certified else None
        if adapter is not None and adapter.router is not None and adapter.prompts.shape[0] > 1:
            result["routing"] = self._worth(adapter.prompts.shape[0], console)
        backbone = prepared.backbone.model
        result |= {
            "cost": _cost(prepared, fitted),
            "environment": {
                **environment(),
                "precision": str(backbone.dtype).removeprefix("torch."),
                "attention": str(backbone.config._attn_implementation),
            },
        }
        card = model_card(prepared.task, result)
        (directory.adapter / "README.md").write_text(card, encoding="utf-8")
        write_json(directory.result, result)
        shutil.rmtree(directory.checkpoints, ignore_errors=True)
        return result

    def _worth(self, k: int, console: Console) -> dict[str, Any]:
        """What the routing is worth: of weights, data and seed alone, so resumed runs agree."""
        prepared = self.prepared
        validation = prepared.split.validation
        examples = examples_to_certify(validation, num_prompts=k, seed=self.spec.seed)
        with bars(console) as progress:
            line = progress.add_task(
                "validation under every prompt", total=(k + 1) * len(examples), loss="", score=""
            )
            found = routing_worth(
                prepared.model,
                prepared.formulation,
                examples,
                on_batch=lambda count: progress.advance(line, count),
            )
        return {**found, "of": len(validation)}


def _begin(
    spec: RunSpec, output: Path, *, resume: bool = False, overwrite: bool = False
) -> _Begun | dict[str, Any]:
    """Check and prepare a run, and write down what it is; a finished one's result."""
    directory = RunDirectory(output)
    directory.check(resume=resume, overwrite=overwrite)
    if resume and directory.spec.is_file():
        _check_same(RunSpec.load(directory.spec), spec, directory)
        if directory.is_finished:
            _check_same_data(*load_task_of(spec), directory)
            return directory.read_result()
    prepared = prepare(spec)
    # only now: an earlier result outlives a mistake in the new run's data or options
    output.mkdir(parents=True, exist_ok=True)
    if overwrite:
        directory.clear()
    if resume:
        _check_same_data(prepared.task, prepared.split, directory)
    spec.save(directory.spec)
    write_json(directory.task, asdict(prepared.task))
    write_json(directory.split, prepared.split.record())
    resumed = resume and last_complete_checkpoint(directory.checkpoints) is not None
    return _Begun(spec, prepared, directory, resumed, time.monotonic())


def test_once(prepared: Prepared, *, revives: bool) -> Evaluation:
    """Score the test examples with the state that validation chose."""
    prepared.formulation.truncated = 0
    return evaluate(
        prepared.model,
        prepared.formulation,
        prepared.split.test,
        majority_label=majority_label([example.label for example in prepared.train]),
        revives=revives,
    )


def _with_rate(spec: RunSpec) -> TrainingOptions:
    """The training options with the learning rate that the run has."""
    return spec.training.model_copy(update={"learning_rate": learning_rate(spec)})


def _save(prepared: Prepared, directory: Path, spec: RunSpec) -> None:
    """The trained adapter as PEFT saves it, or, after full fine-tuning, the whole model.

    Beside it stands what answering needs, so that the directory is enough.
    """
    prepared.model.save_pretrained(str(directory))
    beside = Beside(
        prepared.task,
        located(spec.model),
        spec.training.max_length,
        spec.training.precision,
        virtual_tokens(spec.method),
    )
    save_beside(directory, beside, prepared.backbone.tokenizer)


def _cost(prepared: Prepared, fitted: Fit) -> dict[str, Any]:
    """What training took; last of all, as counting takes a step of its own."""
    per_step, memory = fitted.seconds_per_step, fitted.peak_memory
    return {
        "seconds_per_100_steps": None if per_step is None else 100 * per_step,
        "peak_memory_mib": None if memory is None else memory / 2**20,
        "training_gflops_per_example": _gflops(prepared),
    }


def _gflops(prepared: Prepared) -> float | None:
    """Of forward and backward for the training example of median length; None if it cannot be."""
    formulation = prepared.formulation
    features = [formulation.encode(example) for example in prepared.train]
    features.sort(key=lambda f: len(f["input_ids"]))
    device = next(prepared.model.parameters()).device
    batch = formulation.collate([features[len(features) // 2]])
    try:
        on_device = {name: tensor.to(device) for name, tensor in batch.items()}
        return training_operations(prepared.model, on_device) / 1e9
    except torch.OutOfMemoryError:
        return None  # a figure less, but never the run


def _check_same(before: RunSpec, now: RunSpec, directory: RunDirectory) -> None:
    old, new = before.model_dump(mode="json"), now.model_dump(mode="json")
    changed = [key for key in new if new[key] != old[key]]
    if changed:
        key = changed[0]
        was, wanted = old[key], new[key]
        if isinstance(was, dict) and isinstance(wanted, dict):
            key = next(k for k in wanted if wanted[k] != was.get(k))
            was, wanted = was.get(key), wanted[key]
        raise ConfigError(
            f"{directory.spec} was started with {key}={was!r}, not {wanted!r};"
            " resume with the options it was started with, or use --overwrite"
        )


def _check_same_data(task: Task, split: Split, directory: RunDirectory) -> None:
    """Refuse to go on with other rows: some of today's test rows may have been trained on."""
    now = (json.dumps(asdict(task)), json.dumps(split.record()))
    for path, content in zip((directory.task, directory.split), now, strict=True):
        if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != json.loads(content):
            raise RunError(
                f"the task's data are not those in {path}, with which the run was started;"
                " restore them, or use --overwrite"
            )
