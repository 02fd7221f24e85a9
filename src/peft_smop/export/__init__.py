"""Adapters for engines that know none: as embeddings, as ONNX graphs, in an evaluation harness."""

from peft_smop.export.embeddings import export_embeddings
from peft_smop.export.formats import WRITERS, export
from peft_smop.export.prompted import PromptedTexts, as_base64

__all__ = ["WRITERS", "PromptedTexts", "as_base64", "export", "export_embeddings"]
