from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from peft_smop.embedded.pretrain import Recipe, main, mean_row_loss, pretrain
from peft_smop.errors import ConfigError, RunError

QUICK = Recipe(seed=3, steps=2, batch_size=8, tokenizer_rows=300, held_out_rows_per_skill=4)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_the_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    for name in ("one", "two"):
        pretrain(tmp_path / name, QUICK)
        torch.rand(3)  # the caller's random numbers are none of the recipe's business
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    torch.set_rng_state(state)


def test_another_seed_gives_another_model(tmp_path: Path) -> None:
    pretrain(tmp_path / "one", QUICK)
    pretrain(tmp_path / "two", replace(QUICK, seed=4))
    weights = "model.safetensors"
    assert digests(tmp_path / "one")[weights] != digests(tmp_path / "two")[weights]


def test_the_command_runs_and_writes_its_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--output", str(tmp_path / "model"), "--steps", "2"])
    printed = capsys.readouterr().out
    assert "step 2/2" in printed
    record = json.loads((tmp_path / "model" / "recipe.json").read_text())
    assert record["recipe"]["steps"] == 2
    assert set(record["held_out_accuracy"]) > {"cause", "sense", "mean"}
    assert "torch" in record["versions"]


def test_a_folder_with_something_in_it_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(RunError, match="not an empty directory"):
        pretrain(tmp_path, QUICK)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_no_steps_are_refused() -> None:
    with pytest.raises(ConfigError, match="steps=0"):
        Recipe(steps=0)


def test_the_loss_weighs_rows_alike_whatever_their_length() -> None:
    # Row one: two tokens of loss ln 2 each; row two: one token certain. Mean of ln 2 and 0.
    logits = torch.tensor([[[0.0, 0.0], [0.0, 0.0]], [[100.0, 0.0], [0.0, 0.0]]])
    labels = torch.tensor([[0, 1], [0, -100]])
    expected = torch.tensor(0.5).log().neg() / 2
    torch.testing.assert_close(mean_row_loss(logits, labels), expected)
