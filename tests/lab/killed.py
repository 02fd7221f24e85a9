"""Runs that die on the way."""

import pytest
from safetensors.torch import load_file

from peft_smop.lab import run
from peft_smop.training.trainer import ScoringTrainer


def killed_after(monkeypatch, step):
    """Let training die in the step after this one."""
    original = ScoringTrainer.training_step

    def dies(self, *args, **kwargs):
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(ScoringTrainer, "training_step", dies)


def killed_and_resumed(monkeypatch, wanted, folder):
    """The results of a run that was never killed and of one that was, and their adapters."""
    whole = run(wanted, folder / "whole")
    with monkeypatch.context() as patched:
        killed_after(patched, 5)
        with pytest.raises(KeyboardInterrupt):
            run(wanted, folder / "killed")
    resumed = run(wanted, folder / "killed", resume=True)
    saved = [
        load_file(next((folder / name / "adapter").glob("*.safetensors")))
        for name in ("whole", "killed")
    ]
    return (whole, resumed), saved
