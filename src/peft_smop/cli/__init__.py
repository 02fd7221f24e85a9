"""Commands: they parse, print and exit; what they do is done by the layers below."""

from peft_smop.cli.app import main

__all__ = ["main"]
