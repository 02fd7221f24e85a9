"""What must be in the environment before the libraries are imported."""

import os

SETTINGS = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

for name, value in SETTINGS.items():
    os.environ.setdefault(name, value)
