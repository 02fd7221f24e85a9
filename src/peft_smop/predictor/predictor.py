"""One frozen backbone, any number of adapters, and the answers of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, TaskType
from torch import nn
from transformers import PreTrainedTokenizerBase

from peft_smop.errors import ConfigError, unknown
from peft_smop.methods import (
    LoadedBackbone,
    can_share,
    load_adapter,
    load_backbone,
    load_rows_adapter,
    load_tokenizer,
    precision,
    read_config,
)
from peft_smop.predictor.answer import Answer
from peft_smop.predictor.beside import Beside
from peft_smop.predictor.finding import Source, find, named_by_directory
from peft_smop.predictor.inputs import Input, example_of
from peft_smop.scoring import Asked, Formulation, formulate, predict_rows
from peft_smop.tasks import Example, Task

_MODEL_CONFIG = "config.json"


@dataclass(frozen=True)
class Loaded:
    """An adapter that answers."""

    name: str
    path: Path
    beside: Beside
    formulation: Formulation
    key: str | None
    """What the model calls it; None: the model is the adapter's own and has no other."""

    @property
    def task(self) -> Task:
        """What it was trained for."""
        return self.beside.task


class Predictor:
    """A frozen backbone with adapters, each trained for a task of its own.

        predictor = Predictor.load("runs/tickets")
        predictor.predict(["my invoice is wrong"])[0].label

    Every row of a call may follow another adapter; all share one pass.
    """

    def __init__(self, backbone: LoadedBackbone, location: str) -> None:
        self._backbone = backbone
        self._model: nn.Module = backbone.model
        self._location = location
        self._loaded: dict[str, Loaded] = {}
        self._keys = (f"adapter{number}" for number in count())

    @classmethod
    def load(
        cls,
        sources: Source | Iterable[Source] | Mapping[str, Source],
        *,
        model: str | None = None,
        task: str | Path | None = None,
        device: torch.device | None = None,
    ) -> Predictor:
        """Load what was trained.

        Args:
            sources: a run's directory or an adapter's; or several, by name or known by the names of
                their directories. Several must be mixtures or single prompts of one backbone.
            model: the backbone; by default the one that the adapters were trained on.
            task: for adapters that were saved without their task: a task's name or its YAML.
            device: where to compute; the accelerator if there is one.

        Raises:
            SMoPError: something is missing, damaged, or does not fit.
        """
        if isinstance(sources, str | Path):
            sources = [sources]
        named = sources if isinstance(sources, Mapping) else named_by_directory(sources)
        if not named:
            raise ConfigError("no adapter was named; give a run's directory or an adapter's")
        found = {name: find(Path(source), model, task) for name, source in named.items()}
        _, first = next(iter(found.values()))
        adapter, _ = next(iter(found.values()))
        whole = (adapter / _MODEL_CONFIG).is_file()  # after full fine-tuning
        config = None if whole else read_config(adapter)
        backbone = load_backbone(
            str(adapter) if whole else first.backbone,
            labels=len(first.task.labels),
            device=device,
            dtype=first.precision,
            task_type=TaskType(config.task_type).value if config and config.task_type else None,
        )
        predictor = cls(backbone, first.backbone)
        if len(found) == 1 and (config is None or not can_share(config)):
            name = next(iter(found))
            if config is not None:
                predictor._model = load_adapter(backbone.model, adapter)
            predictor._loaded[name] = predictor._ready(name, adapter, first, key=None)
        else:
            for name, (path, beside) in found.items():
                predictor._add(name, path, beside)
        predictor._model.eval()
        return predictor

    @property
    def adapters(self) -> Mapping[str, Loaded]:
        """The adapters that answer, by name."""
        return dict(self._loaded)

    @property
    def model(self) -> nn.Module:
        """The adapted model."""
        return self._model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The backbone's tokenizer."""
        return self._backbone.tokenizer

    @property
    def kind(self) -> str:
        """PEFT's name for the kind of backbone, such as SEQ_2_SEQ_LM."""
        return self._backbone.task_type

    def task(self, adapter: str | None = None) -> Task:
        """What an adapter was trained for; without a name that of the only one."""
        return self._of(adapter).task

    def add(self, name: str, source: Source, *, task: str | Path | None = None) -> Loaded:
        """Load one more adapter.

        Args:
            name: what to call it.
            source: a run's directory or an adapter's.
            task: for an adapter that was saved without its task.

        Raises:
            ConfigError: the name is taken.
            SMoPError: it is missing, damaged, or does not fit the backbone.
        """
        if name in self._loaded:
            raise ConfigError(f"an adapter named {name!r} is loaded already; remove it first")
        if any(one.key is None for one in self._loaded.values()):
            only = next(iter(self._loaded))
            raise ConfigError(
                f"{only!r} is of a kind that does not share a backbone; load {name!r} by itself"
            )
        path, beside = find(Path(source), None, task)
        return self._add(name, path, beside)

    def remove(self, name: str) -> None:
        """Forget an adapter.

        Raises:
            ConfigError: there is none of that name, or no other.
        """
        gone = self._of(name)
        if len(self._loaded) == 1:
            raise ConfigError(f"{name!r} is the only adapter; load another one first")
        del self._loaded[name]
        model = self._model
        assert isinstance(model, PeftModel)
        model.set_adapter(str(next(iter(self._loaded.values())).key))
        model.delete_adapter(str(gone.key))

    def example(self, row: Input, adapter: str | None = None, *, place: str = "input") -> Example:
        """Check an input and render it by the adapter's template.

        A text is the field of a template that has one, and else the rendered text itself.

        Args:
            row: the input.
            adapter: whose; without a name the only one's.
            place: what an error calls the input.

        Raises:
            DataError: a field is missing, empty or of a wrong type.
        """
        return example_of(row, self.task(adapter), place=place)

    def predict(
        self,
        inputs: Sequence[Input],
        *,
        adapters: str | Sequence[str] | None = None,
        batch_size: int = 32,
    ) -> list[Answer]:
        """Answer every input.

        Args:
            inputs: texts, or the fields of the task's template by name.
            adapters: the adapter of all, or one for each; not needed where there is only one.
            batch_size: inputs in a pass.

        Raises:
            SMoPError: an input cannot be used, or an adapter is unknown.
        """
        if isinstance(inputs, str | Mapping):
            raise ConfigError("predict takes a list of inputs; put the one into brackets")
        names = self._each(adapters, len(inputs))
        rows = [
            (name, self.example(row, name, place=f"input {number}"))
            for number, (name, row) in enumerate(zip(names, inputs, strict=True), start=1)
        ]
        return self.answer(rows, batch_size=batch_size)

    def answer(self, rows: Sequence[tuple[str, Example]], *, batch_size: int = 32) -> list[Answer]:
        """Answer rows that were checked, each by its adapter's name.

        Args:
            rows: as `example` makes them.
            batch_size: rows in a pass.

        Raises:
            SMoPError: an adapter is unknown, or a score is not a number.
        """
        loaded = [self._of(name) for name, _ in rows]
        mixed = len(self._loaded) > 1
        asked = [
            Asked(example, one.formulation, one.key if mixed else None)
            for one, (_, example) in zip(loaded, rows, strict=True)
        ]
        found = predict_rows(self._model, asked, batch_size=batch_size)
        answers = []
        for one, said in zip(loaded, found, strict=True):
            scores = torch.tensor(said.log_probabilities, dtype=torch.float64).softmax(0).tolist()
            answers.append(
                Answer(
                    label=one.task.labels[said.label],
                    probabilities=dict(zip(one.task.labels, scores, strict=True)),
                    prompt=said.prompt,
                    prompt_probability=said.prompt_probability,
                    adapter=one.name,
                    truncated=one.formulation.is_cut(said.example),
                )
            )
        return answers

    def length(self, adapter: str, example: Example) -> int:
        """How many tokens an input has, as its adapter's backbone reads it."""
        return len(self._of(adapter).formulation.encode(example)["input_ids"])

    def generate(
        self,
        inputs: Sequence[Input],
        *,
        adapters: str | Sequence[str] | None = None,
        raw: bool = False,
        **options: Any,
    ) -> list[str]:
        """Write freely after every input.

        Args:
            inputs: as for `predict`.
            adapters: as for `predict`.
            raw: whether inputs are texts that no template is put around.
            **options: of transformers' `generate`, such as `max_new_tokens=20`.

        Raises:
            ConfigError: the backbone is an encoder, which writes nothing.
        """
        if self.kind == "SEQ_CLS":
            raise ConfigError("the backbone is an encoder, which writes no text; use predict")
        names = self._each(adapters, len(inputs))
        if not inputs:
            return []
        tokens = [
            self._tokens(self._of(name), row, raw=raw, place=f"input {number}")
            for number, (name, row) in enumerate(zip(names, inputs, strict=True), start=1)
        ]
        tokenizer = self._backbone.tokenizer
        left = self.kind == "CAUSAL_LM"
        batch = tokenizer.pad(
            {"input_ids": tokens}, padding_side="left" if left else "right", return_tensors="pt"
        ).to(self._backbone.model.device)
        follows: dict[str, Any] = {}
        if len(self._loaded) > 1:
            follows["adapter_names"] = [str(self._of(name).key) for name in names]
        model: Any = self._model
        with torch.inference_mode():
            written = model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                **follows,
                **options,
            )
        if left:
            written = written[:, batch["input_ids"].shape[1] :]
        return tokenizer.batch_decode(written, skip_special_tokens=True)

    def _tokens(self, one: Loaded, row: Input, *, raw: bool, place: str) -> list[int]:
        if raw:
            if not isinstance(row, str) or not row.strip():
                raise ConfigError(f"{place} is {row!r}; expected a text")
            return one.formulation.plain(row)
        return one.formulation.encode(self.example(row, one.name, place=place))["input_ids"]

    def _add(self, name: str, path: Path, beside: Beside) -> Loaded:
        if beside.backbone != self._location:
            raise ConfigError(
                f"{path} was trained on {beside.backbone}, the others on {self._location}; adapters"
                " of one predictor share a backbone"
            )
        own = self._backbone.model
        wanted = precision(beside.precision, own.device, own.num_parameters())
        if wanted != own.dtype:
            raise ConfigError(
                f"{path} was trained on a backbone in {wanted}, the others on one in {own.dtype};"
                " adapters of one predictor share a backbone"
            )
        key = next(self._keys)
        model: Any = self._model
        try:
            self._model = load_rows_adapter(model, path, name=key)
        except Exception:
            if isinstance(model, PeftModel) and key in model.peft_config:
                model.delete_adapter(key)  # half of one is none
            raise
        self._model.eval().requires_grad_(False)
        loaded = self._ready(name, path, beside, key=key)
        self._loaded[name] = loaded
        return loaded

    def _ready(self, name: str, path: Path, beside: Beside, *, key: str | None) -> Loaded:
        own = (path / "tokenizer_config.json").is_file()
        formulation = formulate(
            beside.task,
            self._backbone.model,
            load_tokenizer(path) if own else self._backbone.tokenizer,
            task_type=self._backbone.task_type,
            max_length=beside.max_length,
            prompt_length=beside.prompt_length,
        )
        formulation.keeps = False  # inputs come once, and for as long as a server runs
        return Loaded(name, path, beside, formulation, key)

    def _of(self, name: str | None) -> Loaded:
        if name is None:
            if len(self._loaded) > 1:
                raise ConfigError(
                    f"{len(self._loaded)} adapters are loaded; name one of {self._names()}"
                )
            return next(iter(self._loaded.values()))
        if name not in self._loaded:
            raise unknown("adapter", name, self._loaded)
        return self._loaded[name]

    def _each(self, adapters: str | Sequence[str] | None, count: int) -> list[str]:
        """The name of every input's adapter."""
        if adapters is None or isinstance(adapters, str):
            return [self._of(adapters).name] * count
        if len(adapters) != count:
            raise ConfigError(f"{len(adapters)} adapters for {count} inputs; give one for each")
        return [self._of(name).name for name in adapters]

    def _names(self) -> str:
        return ", ".join(sorted(self._loaded))
