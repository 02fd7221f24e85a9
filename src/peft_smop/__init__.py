"""Sparse mixtures of soft prompts (SMoP) for frozen language models, as a plug-in for PEFT."""

__version__ = "0.1.0"
