"""HTTP over a predictor: one backbone, many adapters, batches that they share."""

from peft_smop.serve.app import build_app
from peft_smop.serve.batching import Batcher, Busy, Late
from peft_smop.serve.options import ServeOptions
from peft_smop.serve.server import serve

__all__ = ["Batcher", "Busy", "Late", "ServeOptions", "build_app", "serve"]
