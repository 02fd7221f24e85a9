"""Sparse mixtures of soft prompts (SMoP) for frozen language models, as a plug-in for PEFT.

Importing this package registers the method with PEFT: `get_peft_model`,
`PeftModel.from_pretrained` and everything else of PEFT then work with it. Nothing else happens.
"""

from peft_smop.tuner import Routes, SMoPConfig, SMoPModel

__all__ = ["Routes", "SMoPConfig", "SMoPModel", "__version__"]

__version__ = "0.1.0"
