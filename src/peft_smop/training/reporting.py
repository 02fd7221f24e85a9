"""Where the Trainer reports to beside the run's own files: TensorBoard, W&B, MLflow and others."""

from __future__ import annotations

from collections.abc import Sequence

from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from peft_smop.errors import ConfigError, unknown


def check_report_to(names: Sequence[str]) -> None:
    """Refuse what the Trainer does not know, or cannot do here.

    Raises:
        ConfigError: a name is unknown, or its package is not installed.
    """
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise unknown("place to report to", name, INTEGRATION_TO_CALLBACK)
        try:
            INTEGRATION_TO_CALLBACK[name]()
        except (RuntimeError, ImportError) as error:
            raise ConfigError(
                f"--report-to {name} needs its package: pip install {name} ({error})"
            ) from error


def close_reports(names: Sequence[str]) -> None:
    """End what would otherwise go on into the process's next run."""
    if "wandb" in names:
        import wandb

        wandb.finish()
