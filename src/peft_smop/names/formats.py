"""What `smop export` writes, and what it needs for it."""

from __future__ import annotations

from importlib.util import find_spec

from peft_smop.errors import ConfigError, unknown

FORMATS = {
    "vllm": "embeddings, prompts and router for a client that sends vLLM prompt_embeds",
    "llama.cpp": "the same directory; llama.cpp takes embeddings in place of tokens",
    "onnx": "router, prompts and backbone as graphs, compared with the model",
    "lm-eval": "the task's YAML for lm-evaluation-harness, and its rows",
}
_NEEDS = {"onnx": ("onnx", "onnxruntime", "onnxscript")}


def check_format(name: str) -> None:
    """Refuse a format that is unknown, or needs what is not installed.

    Raises:
        ConfigError: with the nearest names, or with the extra to install.
    """
    if name not in FORMATS:
        raise unknown("format", name, FORMATS)
    for package in _NEEDS.get(name, ()):
        if find_spec(package) is None:
            raise ConfigError(f"--format {name} needs {package}; pip install 'peft-smop[export]'")
