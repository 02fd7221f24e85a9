"""Get a backbone by name: the packaged one, a Hugging Face id, a directory, or a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from peft_smop.embedded import MODEL_NAME
from peft_smop.errors import CheckpointError, ConfigError, unknown
from peft_smop.methods.sources import UNREADABLE, Source, forget_quantization, unpacked
from peft_smop.names import KNOWN_NAMES

AUTO_CLASSES = {
    "SEQ_2_SEQ_LM": AutoModelForSeq2SeqLM,
    "CAUSAL_LM": AutoModelForCausalLM,
    "SEQ_CLS": AutoModelForSequenceClassification,
}
LARGE_FOR_A_CPU = 50_000_000
"""Parameters from which a CPU's bf16 units are used; smaller models gain little and lose digits."""
BF16_UNITS = ("amx_bf16", "avx512_bf16")
"""A CPU's, as PyTorch calls them."""


@dataclass(frozen=True)
class LoadedBackbone:
    """A frozen model with its tokenizer, and PEFT's name for its kind."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task_type: str


def task_type_of(config: PreTrainedConfig) -> str:
    """PEFT's task type for a model: text-to-text where it can write, a classifier where not."""
    if config.is_encoder_decoder:
        return "SEQ_2_SEQ_LM"
    architectures = " ".join(getattr(config, "architectures", None) or ())
    if "CausalLM" in architectures or "LMHeadModel" in architectures:
        return "CAUSAL_LM"
    writes = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if writes and config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return "CAUSAL_LM"
    return "SEQ_CLS"


def precision(name: str, device: torch.device, parameters: int) -> torch.dtype:
    """The backbone's precision: "auto" is bf16 where the device has units for it.

    On a CPU (AMX, AVX-512 BF16) only for backbones large enough to spend their time there.
    """
    if name != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        units: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        large = parameters >= LARGE_FOR_A_CPU
        native = device.type == "cpu" and large and any(units.get(unit) for unit in BF16_UNITS)
    return torch.bfloat16 if native else torch.float32


def fold_head(model: PreTrainedModel) -> None:
    """Have a decoder's head read its states as one matrix.

    transformers hands it the last token's states as a slice of all tokens', which PyTorch
    multiplies row by row. In bf16 a CPU copies the weight for each of them: of 32 rows that takes
    400 times as long (`benchmarks/decoder.py`).
    """
    head = model.get_output_embeddings()
    if isinstance(head, nn.Linear):
        head.register_forward_pre_hook(_in_one_block)


def _in_one_block(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    return (args[0].contiguous(), *args[1:]) if args else None


def load_backbone(
    name: str,
    *,
    labels: int,
    device: torch.device | None = None,
    dtype: str = "auto",
    task_type: str | None = None,
    dropout: bool = True,
    trust_remote_code: bool = False,
) -> LoadedBackbone:
    """Load a backbone and its tokenizer.

    Args:
        name: "embedded", a hub id, a directory, or a GGUF file.
        labels: how many classes a classification head has, where the model needs one.
        device: where to put it; the accelerator if there is one.
        dtype: "auto", "fp32" or "bf16".
        task_type: overrides the kind that the model's configuration says.
        dropout: whether the model drops what its configuration says while something is trained.
        trust_remote_code: whether code that comes with the model may run; no command sets it.

    Raises:
        ConfigError: there is no such model, or it cannot be reached.
        CheckpointError: its files are damaged or not safe to read.
    """
    said = replace(Source.of(name), trust_remote_code=trust_remote_code)
    source = unpacked(said)
    device = device or default_device()
    config = _config(source)
    kind = task_type or task_type_of(config)
    if kind not in AUTO_CLASSES:
        raise CheckpointError(
            f"the adapter is for {kind}; tasks are put to models of {', '.join(AUTO_CLASSES)}"
        )
    extra: dict[str, Any] = dict(source.arguments)
    if kind == "SEQ_CLS":
        # the head is trained anew anyway, also where the model brings one for other labels
        extra |= {"num_labels": labels, "ignore_mismatched_sizes": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.location, **source.arguments)
        model = AUTO_CLASSES[kind].from_pretrained(
            source.location,
            dtype=precision(dtype, device, _parameters(config, kind, trusted=trust_remote_code)),
            use_safetensors=True,
            **extra,
        )
    except ImportError as error:
        raise ConfigError(_first_sentence(error)) from error
    except UNREADABLE as error:
        raise CheckpointError(f"model {name!r} cannot be read: {_first_sentence(error)}") from error
    if source.gguf_file is not None:
        forget_quantization(model)
    if not dropout:
        drop_nothing(model)
    fold_head(model)
    model.name_or_path = tokenizer.name_or_path = said.location  # what adapters remember
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return LoadedBackbone(model.to(device), tokenizer, kind)


def drop_nothing(model: PreTrainedModel) -> None:
    """Set every dropout of a model to 0, whether it stands in a module or a configuration."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        _zero_rates(module)
    for config in _configs_of(model.config):
        _zero_rates(config)


def _configs_of(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    """A configuration and those within it."""
    inner = [part for part in vars(config).values() if isinstance(part, PreTrainedConfig)]
    return [config, *(one for part in inner for one in _configs_of(part))]


def _zero_rates(holder: Any) -> None:
    for name, value in list(vars(holder).items()):
        if "drop" in name and isinstance(value, float):
            setattr(holder, name, 0.0)


def _parameters(config: PreTrainedConfig, kind: str, *, trusted: bool) -> int:
    """How many parameters a model has, without its weights."""
    with torch.device("meta"):
        return AUTO_CLASSES[kind].from_config(config, trust_remote_code=trusted).num_parameters()


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer without its model.

    Raises:
        CheckpointError: there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{directory} holds no tokenizer that can be read: {_first_sentence(error)}"
        ) from error


def default_device() -> torch.device:
    """The accelerator, or the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator if accelerator is not None else torch.device("cpu")


def _config(source: Source) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(source.location, **source.arguments)
    except ImportError as error:
        raise ConfigError(f"{_first_sentence(error)}; pip install 'peft-smop[gguf]'") from error
    except UNREADABLE as error:
        if Path(source.name).exists():
            raise CheckpointError(
                f"model {source.name!r} cannot be read: {_first_sentence(error)}"
            ) from error
        said = str(unknown("model", source.name, KNOWN_NAMES))
        if source.name in KNOWN_NAMES:
            said = f"model {source.name!r} is not in reach"
        raise ConfigError(
            f"{said} (no directory here, not in the local cache, and not reached on the hub)."
            f" --model {MODEL_NAME} needs no download."
        ) from error


def _first_sentence(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
