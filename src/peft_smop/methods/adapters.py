"""Load a saved adapter onto a backbone, with every way it can be wrong said in one sentence."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

from peft import PeftConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from peft_smop.errors import CheckpointError
from peft_smop.tuner import SMoPConfig
from peft_smop.tuner.saved import newest_key

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PROMPT_KEYS = ("smop_adapters.prompts", "prompt_embeddings")
BASIS_KEY = "network.basis"


def load_adapter(
    backbone: PreTrainedModel | PeftModel, directory: Path, *, name: str = "default"
) -> PeftModel:
    """Put a saved adapter on a backbone, for inference, beside those that it has.

    Args:
        backbone: a bare model, or one with adapters already.
        directory: the adapter's.
        name: what to call it there.

    Raises:
        CheckpointError: files are missing, damaged, pickled, or made for another backbone.
    """
    check_adapter(directory, width=backbone.get_input_embeddings().weight.shape[1])
    try:
        with warnings.catch_warnings():
            # PEFT would go on with tensors at their start
            warnings.filterwarnings("error", message="Found missing adapter keys")
            if isinstance(backbone, PeftModel):
                backbone.load_adapter(str(directory), adapter_name=name)
                return backbone
            return PeftModel.from_pretrained(backbone, str(directory), adapter_name=name)
    except CheckpointError:
        raise
    except UserWarning as warning:
        raise CheckpointError(
            f"{directory / WEIGHTS_NAME} lacks tensors of the adapter that {CONFIG_NAME} describes;"
            " expected those that were saved with it"
        ) from warning
    except (RuntimeError, KeyError, ValueError) as error:
        reason = str(error).strip().split("\n")[-1].strip()
        raise CheckpointError(f"{directory} does not fit this backbone: {reason}") from error


def load_rows_adapter(
    backbone: PreTrainedModel | PeftModel, directory: Path, *, name: str
) -> PeftModel:
    """Put a saved adapter on a backbone, so that any row of a batch may follow it.

    PEFT's own prompt tuning is read into the mixture's mechanism, as a single prompt.

    Args:
        backbone: a bare model, or one with such adapters already.
        directory: the adapter's.
        name: what to call it there.

    Raises:
        CheckpointError: it cannot be loaded, or is of a kind whose rows cannot share a batch.
    """
    config = read_config(directory)
    if isinstance(config, SMoPConfig):
        return load_adapter(backbone, directory, name=name)
    if not can_share(config):
        kind = str(getattr(config.peft_type, "value", config.peft_type)).lower()
        raise CheckpointError(
            f"{directory} is a {kind} adapter; only smop, single and prompt-tuning adapters share"
            " batches, serve this one alone"
        )
    check_adapter(directory, width=backbone.get_input_embeddings().weight.shape[1])
    single = SMoPConfig(
        task_type=config.task_type,
        routing="single",
        num_virtual_tokens=config.num_virtual_tokens,
        init="adapter",
        init_adapter=str(directory),
        inference_mode=True,
        base_model_name_or_path=config.base_model_name_or_path,
    )
    try:
        if isinstance(backbone, PeftModel):
            backbone.add_adapter(name, single)
            return backbone
        return get_peft_model(backbone, single, adapter_name=name)
    except (RuntimeError, KeyError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{directory} does not fit this backbone: {error}") from error


def can_share(config: PeftConfig) -> bool:
    """Whether rows that follow such an adapter may stand in a batch with rows of others."""
    plain = isinstance(config, PromptTuningConfig) and config.task_type != "SEQ_CLS"
    return isinstance(config, SMoPConfig) or plain


def read_config(directory: Path) -> PeftConfig:
    """The configuration of a saved adapter.

    Raises:
        CheckpointError: it is missing or cannot be read.
    """
    path = directory / CONFIG_NAME
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is not a directory; expected a saved adapter")
    if not path.is_file():
        # PEFT's of an adapter that is not `default`, of runs side by side, of a sweep's store
        places = ("*", "*/adapter", "runs/*/adapter")
        such = min((p for d in places for p in directory.glob(f"{d}/{CONFIG_NAME}")), default=None)
        raise CheckpointError(
            f"{path} does not exist; expected the directory of a saved adapter"
            + (f", such as {such.parent}" if such else "")
        )
    try:
        json.loads(path.read_text(encoding="utf-8"))
        return PeftConfig.from_pretrained(str(directory))
    except json.JSONDecodeError as error:
        raise CheckpointError(
            f"{path}, line {error.lineno}: not JSON ({error.msg}); expected an adapter's"
            f" configuration"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} describes no adapter of a known kind: {error}") from error


def check_adapter(directory: Path, *, width: int) -> None:
    """Refuse an adapter that cannot be loaded safely and whole.

    Args:
        directory: the adapter's directory.
        width: the backbone's embedding width, e.

    Raises:
        CheckpointError: with the file and what was expected.
    """
    config = read_config(directory)
    path = directory / WEIGHTS_NAME
    if not path.is_file():
        pickled = [
            name
            for name in ("adapter_model.bin", "pytorch_model.bin")
            if (directory / name).exists()
        ]
        if pickled:
            raise CheckpointError(
                f"{directory / pickled[0]} is a pickle, which can run code when read; expected"
                f" {WEIGHTS_NAME}"
            )
        raise CheckpointError(f"{path} does not exist; the adapter was saved without its weights")
    try:
        with safe_open(path, framework="pt") as tensors:
            names = tensors.keys()
            shapes = {newest_key(key): tensors.get_slice(key).get_shape() for key in names}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is damaged or cut short ({error}); expected the safetensors file that was"
            f" saved"
        ) from error
    if isinstance(config, PrefixTuningConfig):
        return  # its rows are keys and values of every layer, which PEFT itself compares
    # low-rank prompts are as wide as their basis
    low_rank = any(key.endswith(BASIS_KEY) for key in shapes)
    for key, shape in shapes.items():
        if key.endswith(BASIS_KEY if low_rank else PROMPT_KEYS) and shape[-1] != width:
            raise CheckpointError(
                f"{path} was trained for a backbone with embeddings of width {shape[-1]};"
                f" this backbone's are {width} wide"
            )
    if isinstance(config, SMoPConfig) and not any(key.endswith(PROMPT_KEYS[0]) for key in shapes):
        raise CheckpointError(f"{path} holds no soft prompts; expected those of {CONFIG_NAME}")
