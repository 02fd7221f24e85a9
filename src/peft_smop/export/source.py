"""What is exported: one adapter of soft prompts on its backbone, and where it goes."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel

from peft_smop.errors import ConfigError
from peft_smop.predictor import Loaded, Predictor
from peft_smop.predictor.finding import Source
from peft_smop.results import check_vacant, writing
from peft_smop.tuner import SMoPModel
from peft_smop.tuner.layer import Adapter, SMoPLayer


@dataclass(frozen=True)
class Exported:
    """One adapter, ready to be read out."""

    predictor: Predictor
    loaded: Loaded
    model: PeftModel
    layer: SMoPLayer
    name: str
    """What the layer calls it."""

    @classmethod
    def load(
        cls, source: Source, *, model: str | None = None, task: str | Path | None = None
    ) -> Exported:
        """Load an adapter onto its backbone, on the CPU.

        Args:
            source: a run's directory or an adapter's.
            model: the backbone; by default the one that it was trained on.
            task: for an adapter that was saved without its task.

        Raises:
            ConfigError: it is no adapter of soft prompts.
            SMoPError: something is missing, damaged, or does not fit.
        """
        predictor = Predictor.load(source, model=model, task=task, device=torch.device("cpu"))
        tuner = SMoPModel.of(predictor.model)
        peft_model = predictor.model
        if tuner is None or not isinstance(peft_model, PeftModel):
            raise ConfigError(
                f"{source} holds no soft prompts; only mixtures, single prompts and prompt tuning"
                " are exported here, for others see PEFT's merge_and_unload"
            )
        (loaded,) = predictor.adapters.values()
        return cls(predictor, loaded, peft_model, tuner.smop_layer, tuner.active_adapters[0])

    @property
    def adapter(self) -> Adapter:
        """Its tensors."""
        return self.layer[self.name]

    @property
    def room(self) -> int:
        """The longest input in tokens."""
        return self.loaded.formulation.max_length


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory that takes its place when it is whole, and leaves no trace where it is not.

    Args:
        path: its place; an empty directory there is replaced.

    Raises:
        RunError: something is there, or the place cannot be written to.
    """
    check_vacant(path)
    made = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.draft")
    with writing(path):
        made.mkdir(parents=True)
    try:
        yield made
        with writing(path):
            if path.exists():
                path.rmdir()
            made.rename(path)
    finally:
        shutil.rmtree(made, ignore_errors=True)
