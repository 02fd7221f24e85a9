"""The offline default: a small T5 made by this project's own recipe, and a generated task for it.

It is a demonstration and a test bed, named so wherever it appears, and never evidence for what the
paper claims. Nothing heavy is imported here; `peft_smop.embedded.pretrain` holds the recipe,
`peft_smop.embedded.medley` the task.
"""

from __future__ import annotations

from pathlib import Path

MODEL_NAME = "embedded"
"""The name to give wherever a Hugging Face id or path is accepted."""

MODEL_DIR: Path = Path(__file__).parent / "model"
"""Where the packaged model lies: config, safetensors, tokenizer and the record of its recipe."""

__all__ = ["MODEL_DIR", "MODEL_NAME"]
