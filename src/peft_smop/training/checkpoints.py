"""Checkpoints that are whole, as their manifests of sizes and hashes say, or are passed over."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
from peft import PromptLearningConfig
from safetensors.torch import load_file, save_file
from torch import nn, no_grad
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME

from peft_smop.errors import CheckpointError
from peft_smop.results import read_object, sha256_of, write_json, writing

TRAINED = "trained.safetensors"
"""In a checkpoint: the trained parameters themselves, where PEFT saves only what they make."""
MANIFEST = "manifest.json"
"""Written into a checkpoint when everything else is there: what there is, with size and hash."""
NEEDED = (TRAINER_STATE_NAME, SCHEDULER_NAME, "optimizer")
"""How the names of files begin without which no training goes on as it would have."""


def seal(folder: Path) -> None:
    """Write down what is in a checkpoint.

    Raises:
        RunError: the place cannot be written to.
    """
    files = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": sha256_of(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    write_json(folder / MANIFEST, {"files": files})


def is_whole(folder: Path) -> bool:
    """Whether everything is there that the checkpoint's own manifest lists, and as it was."""
    try:
        files = read_object(folder / MANIFEST, "a checkpoint's manifest")["files"]
        return all(any(name.startswith(start) for name in files) for start in NEEDED) and all(
            (folder / name).stat().st_size == said["bytes"]
            and sha256_of(folder / name) == said["sha256"]
            for name, said in files.items()
        )
    except (CheckpointError, OSError, LookupError, TypeError, AttributeError):
        return False


def state_of(folder: Path) -> TrainerState:
    """The trainer's state in a whole checkpoint."""
    return TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))


def best_of(state: TrainerState, output: Path) -> Path | None:
    """Where the best state is kept, wherever the run's directory is today; None: there is none."""
    if state.best_global_step is None:
        return None
    return output / f"checkpoint-{state.best_global_step}"


def complete_checkpoints(output: Path) -> dict[int, Path]:
    """The checkpoints from which a run can go on, by step: whole, and their best state too."""
    numbers = {
        int(folder.name.rsplit("-", 1)[1]): folder
        for folder in output.glob("checkpoint-*")
        if folder.name.rsplit("-", 1)[1].isdigit()
    }
    whole = {step: folder for step, folder in numbers.items() if is_whole(folder)}
    return {
        step: folder
        for step, folder in whole.items()
        if best_of(state_of(folder), output) in (None, *whole.values())
    }


def last_complete_checkpoint(output: Path) -> Path | None:
    """The newest checkpoint from which a run can go on, or None."""
    steps = complete_checkpoints(output)
    return steps[max(steps)] if steps else None


class CompleteCheckpoint(TrainerCallback):
    """Seal a checkpoint once all its files are written, and only then drop older ones.

    The trainer's own rotation would delete the last whole checkpoint before the new one is sealed.
    """

    def __init__(self) -> None:
        self._newest: Path | None = None

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the manifest; one of several processes does, when all have written their parts."""
        assert args.output_dir is not None
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if dist.is_available() and dist.is_initialized():
            dist.barrier()
        if not state.is_world_process_zero or not folder.is_dir():
            return
        with writing(folder):
            if model is not None:
                save_trained(model, folder)
            seal(folder)
        self._newest = folder

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the newest checkpoint and the best one; runs that share steps have saved by now."""
        if self._newest is not None:
            keep_only(self._newest.parent, {self._newest, best_of(state, self._newest.parent)})
            self._newest = None


def keep_only(output: Path, kept: set[Path | None]) -> None:
    """Delete all checkpoints but some."""
    for other in set(output.glob("checkpoint-*")) - kept:
        shutil.rmtree(other, ignore_errors=True)


def save_trained(model: nn.Module, folder: Path) -> None:
    """Keep what is trained where PEFT keeps only its product.

    P-tuning trains a network that makes the prompt; PEFT saves the prompt, and would put it back in
    place of the network's input.
    """
    configs = getattr(model, "peft_config", {}).values()
    if any(isinstance(config, PromptLearningConfig) for config in configs):
        trained = {n: p.detach().cpu() for n, p in model.named_parameters() if p.requires_grad}
        save_file(trained, folder / TRAINED)


def restore_trained(model: nn.Module, folder: Path) -> None:
    """Take back what `save_trained` kept."""
    if (folder / TRAINED).is_file():
        trained = load_file(folder / TRAINED)
        with no_grad():
            for name, parameter in model.named_parameters():
                if name in trained:
                    parameter.copy_(trained[name])
