"""What the libraries say about themselves, and a user can do nothing about, left out."""

from __future__ import annotations

import logging
import os
import sys
import warnings


def quiet_libraries() -> None:
    """Leave it out for the rest of this process, whether transformers is imported yet or not."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    warnings.filterwarnings("ignore", message="Could not find a config file", module="peft")
    # its retries are told in the end by one sentence of ours
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    if "transformers" in sys.modules:  # it has read its environment already
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
