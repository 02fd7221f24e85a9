"""Nothing of a finished run is believed that is not as the run wrote it."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

QUICK = ("--max-steps", 2, "--eval-steps", 1, "--set", "batch_size=8")


@pytest.fixture(scope="module")
def finished(toy_task, saved_models, tmp_path_factory):
    """Two finished runs of a comparison, to be copied."""
    from peft_smop.lab import study, variant

    folder = tmp_path_factory.mktemp("finished")
    common = {
        "task": str(toy_task),
        "model": saved_models["t5"],
        "training": {"max_steps": 2, "eval_steps": 1, "batch_size": 8, "epochs": 50},
    }
    chosen = [variant("smop"), variant("single")]
    study(common, chosen, seeds=[0], trials=1, output=folder / "compare")
    return folder / "compare"


@pytest.fixture
def compared(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "compare")
    return tmp_path / "compare"


def first(compared):
    return next(path for path in (compared / "runs").iterdir() if "-smop-" in path.name)


def edited_json(change):
    def alter(path):
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return alter


def flipped(path):
    """Every prediction right: the best table there could be."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**r, "prediction": r["label"]}) + "\n" for r in rows))


def other_weights(path):
    tensors = load_file(path)
    save_file({n: t + 1 if n.endswith("prompts") else t for n, t in tensors.items()}, path)


def text(content):
    return lambda path: path.write_text(content)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def gone(path):
    path.unlink()


def binary(path):
    path.write_bytes(b"\xff\xfe\x00" * 40)


def folder(path):
    path.unlink()
    path.mkdir()


WAYS = {
    "a better score": ("result.json", edited_json(lambda c: c["test"].update(value=99.9))),
    "another seed": ("result.json", edited_json(lambda c: c.update(seed=7))),
    "a field less": ("result.json", edited_json(lambda c: c.pop("cost"))),
    "a field more": ("result.json", edited_json(lambda c: c.update(note="mine"))),
    "no hash of itself": ("result.json", edited_json(lambda c: c.pop("sha256"))),
    "no hashes": ("result.json", edited_json(lambda c: c.update(files={}))),
    "another format": ("result.json", edited_json(lambda c: c.update(format=1))),
    "half a result": ("result.json", cut),
    "an empty result": ("result.json", text("")),
    "a list as result": ("result.json", text("[]")),
    "a null result": ("result.json", text("null")),
    "a binary result": ("result.json", binary),
    "a deep result": ("result.json", text("[" * 100_000)),
    "right predictions": ("predictions.jsonl", flipped),
    "half the predictions": ("predictions.jsonl", cut),
    "no predictions": ("predictions.jsonl", gone),
    "empty predictions": ("predictions.jsonl", text("")),
    "other predictions": ("predictions.jsonl", text('{"id": 1}\n')),
    "predictions as a folder": ("predictions.jsonl", folder),
    "other metrics": ("metrics.jsonl", text('{"step": 1, "eval_score": 100.0}\n')),
    "half the metrics": ("metrics.jsonl", cut),
    "no metrics": ("metrics.jsonl", gone),
    "another split": ("split.json", edited_json(lambda c: c.update(seed=9))),
    "half a split": ("split.json", cut),
    "no split": ("split.json", gone),
    "another task": ("task.json", edited_json(lambda c: c["labels"].reverse())),
    "half a task": ("task.json", cut),
    "another spec": ("spec.yaml", lambda p: p.write_text(p.read_text() + "\n# mine\n")),
    "a spec that is none": ("spec.yaml", text("a: [")),
    "other weights": ("adapter/adapter_model.safetensors", other_weights),
    "half the weights": ("adapter/adapter_model.safetensors", cut),
    "another configuration": (
        "adapter/adapter_config.json",
        edited_json(lambda c: c.update(inference_mode=None)),
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_damaged_or_altered_file_is_named_in_one_sentence_and_in_no_table(
    smop, compared, toy_task, saved_models, way
):
    name, alter = WAYS[way]
    run = first(compared)
    alter(run / name)
    # files alone decide: nothing is trained or tested again
    code, out, err = smop(
        "compare", "-t", toy_task, "-m", saved_models["t5"], "-o", compared,
        "--methods", "smop,single", "--seeds", 1, *QUICK,
    )  # fmt: skip
    assert code == 2, (out, err)
    assert "Traceback" not in err
    sentences = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1
    assert str(run / name) in sentences[0]
    assert len(sentences[0]) < 600
    assert "%" not in out


@pytest.mark.parametrize("way", ["right predictions", "other weights", "a better score"])
@pytest.mark.parametrize("command", ["evaluate", "predict", "routes"])
def test_every_command_that_takes_up_a_run_notices(smop, compared, way, command, tmp_path):
    name, alter = WAYS[way]
    run = first(compared)
    alter(run / name)
    (tmp_path / "in.jsonl").write_text('{"text": "the cat is red"}\n')
    arguments = [tmp_path / "in.jsonl"] if command == "predict" else []
    code, out, err = smop(command, run, *arguments)
    assert code == 2
    assert out == ""
    assert f"error: {run / name} was altered since the run finished" in err


@pytest.mark.parametrize("content", ["{", "[]", '{"methods": 3}', '{"methods": [{"method": "x"}]}'])
def test_a_damaged_log_of_searches_is_named(smop, compared, toy_task, saved_models, content):
    (compared / "search.json").write_text(content)
    code, _, err = smop(
        "compare", "-t", toy_task, "-m", saved_models["t5"], "-o", compared,
        "--methods", "smop,single", "--seeds", 1, *QUICK,
    )  # fmt: skip
    assert code == 2
    assert f"error: {compared / 'search.json'} cannot be read as a log of searches" in err
    assert "Traceback" not in err


def test_a_model_card_may_be_written_in(smop, compared):
    card = first(compared) / "adapter" / "README.md"
    card.write_text("what I think of it")
    assert smop("evaluate", first(compared))[0] == 0
