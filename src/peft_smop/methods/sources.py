"""Where a backbone comes from; a GGUF file is unpacked once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import tempfile
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.constants import HF_HOME
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from peft_smop.embedded import MODEL_DIR, MODEL_NAME
from peft_smop.errors import CheckpointError, shortened, unknown
from peft_smop.tasks.reading import shown

WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json")
UNREADABLE = (
    OSError,
    ValueError,
    RuntimeError,
    ImportError,
    LookupError,
    TypeError,
    OverflowError,
    struct.error,
)
"""What the libraries that read models raise where a file is damaged."""
UNPACKED = Path(HF_HOME) / "peft-smop" / "gguf"
"""Where GGUF files are kept as directories, by their content."""
POOLING = "1_Pooling/config.json"
"""Where a sentence transformer says by what a text's states become one."""
MODES = ("cls", "lasttoken", "max", "mean", "mean_sqrt_len_tokens", "weightedmean")
"""What a sentence transformer may say there."""
_SAY_IT = (
    "say what a head is to read with --pooling mean, or own for what it does by itself (behind a"
    " method's name where several are named, as single:pooling=own)"
)


@dataclass(frozen=True)
class Source:
    """Where a backbone comes from, in the terms of `from_pretrained`."""

    name: str
    location: str
    gguf_file: str | None = None
    trust_remote_code: bool = False

    @classmethod
    def of(cls, name: str) -> Source:
        """Read a name as the packaged model, a GGUF file, a directory or a hub id.

        Raises:
            CheckpointError: the path exists and holds no model that may be read.
            ConfigError: it is nearly the packaged model's.
        """
        if name == MODEL_NAME:
            return cls(name, str(MODEL_DIR))
        path = Path(name)
        if path.suffix == ".gguf" and path.is_file():
            return cls(name, str(path.parent), path.name)
        if path.is_dir():
            if not (path / "config.json").is_file():
                raise CheckpointError(
                    f"{path} is no model: it has no config.json; expected a directory written by"
                    " save_pretrained"
                )
            if not any(any(path.glob(pattern)) for pattern in WEIGHT_PATTERNS):
                raise CheckpointError(
                    f"{path} has no weights as safetensors; expected model.safetensors"
                    " (pickled weights are not read)"
                )
        elif get_close_matches(name.lower(), [MODEL_NAME], cutoff=0.8):
            raise unknown("model", name, [MODEL_NAME])  # before the hub is asked, and asked again
        return cls(name, name)

    @property
    def arguments(self) -> dict[str, Any]:
        """Further arguments for every `from_pretrained`.

        Said outright: otherwise transformers asks on the standard input about a model's code.
        """
        gguf = {} if self.gguf_file is None else {"gguf_file": self.gguf_file}
        return {"trust_remote_code": self.trust_remote_code, **gguf}


def declared_pooling(name: str) -> Literal["own", "mean"]:
    """What a sentence transformer was trained to be read by; "own" where a model says nothing.

    Args:
        name: an encoder's, as `load_backbone` takes it.

    Raises:
        CheckpointError: what it says is damaged, or cannot be had now.
    """
    path = _pooling_of(Source.of(name).location)
    if path is None:
        return "own"
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; {_SAY_IT}") from error
    modes = _modes(said) if isinstance(said, dict) else None
    if modes is None:
        raise CheckpointError(
            f"{path} holds {shown(said)}; expected how a text's states are pooled, such as"
            f' "pooling_mode": "mean"; {_SAY_IT}'
        )
    return "mean" if modes == ["mean"] else "own"


def _modes(said: dict[str, Any]) -> list[str] | None:
    """By what a text's states become one, several joined; None: nothing that could be."""
    asked = said.get("pooling_mode")
    if asked is not None:
        named = [asked] if isinstance(asked, str) else asked
        known = isinstance(named, list) and named and all(mode in MODES for mode in named)
        return named if known else None
    # as sentence-transformers wrote it before its version 6
    flags = {k: v for k, v in said.items() if k.startswith("pooling_mode_")}
    if not all(isinstance(flag, bool) for flag in flags.values()):
        return None
    on = [k for k, flag in ({"pooling_mode_mean_tokens": True} | flags).items() if flag]
    return [k.removeprefix("pooling_mode_").removesuffix("_tokens") for k in on] or None


def _pooling_of(location: str) -> Path | None:
    """The file in which a model says by what it is read; None: it has none."""
    if Path(location).is_dir():
        path = Path(location) / POOLING
        return path if os.path.lexists(path) else None  # a link to nothing is damage
    try:
        found = try_to_load_from_cache(location, POOLING)
        if found is not None:  # known, to be there or to be missing
            return Path(found) if isinstance(found, str) else None
        return Path(hf_hub_download(location, POOLING))
    except Exception as error:  # its transport's among them, whose kinds change with versions
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        raise CheckpointError(
            f"whether {location} is meant to be read by the mean of its states is not known, as its"
            f" {POOLING} cannot be had: {shortened(str(error))}; {_SAY_IT}"
        ) from error


def unpacked(source: Source) -> Source:
    """A GGUF file's model as a directory in the cache, made at the first use.

    The weights are those that reading the file gives, in fp32, to the bit. Where the cache cannot
    be written, and for files that cannot be read, the source stays what it was.

    Args:
        source: any.
    """
    if source.gguf_file is None:
        return source
    path = Path(source.location) / source.gguf_file
    try:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        # another version may read the same file otherwise
        kept = UNPACKED / f"{content}-{transformers.__version__}"
        if not (kept / "config.json").is_file():
            _unpack(source, kept)
    except UNREADABLE:
        return source  # loading it says what is wrong
    return replace(source, location=str(kept), gguf_file=None)


def _unpack(source: Source, kept: Path) -> None:
    """Write a GGUF file's model and tokenizer into a directory, whole or not at all."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(dir=kept.parent, prefix=".making-"))
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.location, **source.arguments)
        model = AutoModelForCausalLM.from_pretrained(
            source.location, dtype=torch.float32, **source.arguments
        )
        forget_quantization(model)
        tokenizer.save_pretrained(making)
        model.save_pretrained(making)
        try:
            os.rename(making, kept)
        except OSError:
            if not (kept / "config.json").is_file():  # unless another process was faster
                raise
    finally:
        shutil.rmtree(making, ignore_errors=True)


def forget_quantization(model: PreTrainedModel) -> None:
    """Drop the mark of a format that reading has undone: the weights are plain by now.

    The Trainer would refuse the model for it.
    """
    model.hf_quantizer = None
    model.is_quantized = False
    for holder, name in ((model, "quantization_method"), (model.config, "quantization_config")):
        if hasattr(holder, name):
            delattr(holder, name)
