"""Backbones by name."""

from peft_smop.embedded import MODEL_NAME

DEFAULT_MODEL = "t5-base"
KNOWN_NAMES = (MODEL_NAME, "t5-small", "t5-base", "t5-large", "google/flan-t5-base")
