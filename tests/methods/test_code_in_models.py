"""Code in a model's directory does not run, and nobody is asked whether it may."""

import json
import subprocess
import sys

import pytest

CODE = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
from transformers import {base} as Base
class Own(Base):
    pass
"""
SCRIPT = """
import sys
from peft_smop.errors import SMoPError
from peft_smop.methods import load_backbone
try:
    load_backbone(sys.argv[1], labels=2)
except SMoPError as error:
    print("refused:", error)
"""


@pytest.mark.parametrize("part", ["config", "model", "tokenizer"])
def test_code_in_a_model_s_directory_does_not_run(part, saved_models, tmp_path):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(saved_models["t5"], folder)
    words = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    base = {
        "config": "T5Config",
        "model": "T5ForConditionalGeneration",
        "tokenizer": "PreTrainedTokenizerFast",
    }[part]
    (folder / "own.py").write_text(CODE.format(base=base))
    if part == "tokenizer":
        tokenizer["auto_map"] = {"AutoTokenizer": [None, "own.Own"]}
        tokenizer["tokenizer_class"] = "Own"
    elif part == "config":
        words |= {"auto_map": {"AutoConfig": "own.Own"}, "model_type": "own"}
    else:
        words |= {"auto_map": {"AutoModelForSeq2SeqLM": "own.Own"}, "architectures": ["Own"]}
    (folder / "config.json").write_text(json.dumps(words))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, folder],
        input="y\ny\ny\n",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "[y/N]" not in done.stdout + done.stderr
    assert not (folder / "ran").exists()
    assert not list(tmp_path.rglob("ran"))
