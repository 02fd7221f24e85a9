"""Runs that die on the way."""

from peft_smop.training.trainer import ScoringTrainer


def killed_after(monkeypatch, step):
    """Let training die in the step after this one."""
    original = ScoringTrainer.training_step

    def dies(self, *args, **kwargs):
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(ScoringTrainer, "training_step", dies)
