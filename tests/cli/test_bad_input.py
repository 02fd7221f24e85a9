"""Every mistake ends with one sentence that names it, exit code 2, and nothing lost."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

QUICK = ("--max-steps", 2, "--eval-steps", 1, "--batch-size", 8)


def refused(outcome, *words):
    """The command failed as a user's mistake does, with these words in its one sentence."""
    code, out, err = outcome
    assert code == 2, err
    assert "Traceback" not in err + out
    progress = "toy smop seed 0: step"
    lines = [x for x in err.splitlines() if x.strip() and not x.startswith(progress)]
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    for word in words:
        assert str(word) in lines[0], (word, lines[0])
    return lines[0]


@pytest.fixture
def trained(smop, toy_task, saved_models, tmp_path):
    """A finished run on the tiny T5."""
    code, _, err = smop(
        "train", "-t", toy_task, "-m", saved_models["t5"], "-o", tmp_path / "run", *QUICK
    )
    assert code == 0, err
    return tmp_path / "run"


def test_a_data_directory_that_is_missing_empty_or_without_the_task(smop, tmp_path, saved_models):
    model = saved_models["t5"]
    refused(smop("train", "-t", "cb", "--data", tmp_path / "no", "-m", model), tmp_path / "no")
    (tmp_path / "empty").mkdir()
    refused(smop("train", "-t", "cb", "--data", tmp_path / "empty", "-m", model), "empty", "CB")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"premise": "a b", "hypothesis": "c", "label": "neutral"', ["line 2", "JSON"]),
        (
            '{"premise": "a b", "hypothesis": "c", "label": "maybe"}',
            ["line 2", "maybe", "entailment"],
        ),
        ('{"premise": "a b", "label": "neutral"}', ["line 2", "hypothesis"]),
        ('{"premise": "", "hypothesis": "c", "label": "neutral"}', ["line 2", "premise", "empty"]),
    ],
)
def test_a_line_that_cannot_be_used(smop, tmp_path, saved_models, line, words):
    folder = tmp_path / "CB"
    folder.mkdir()
    good = {"premise": "a b", "hypothesis": "c", "label": "neutral", "idx": 0}
    (folder / "train.jsonl").write_text(json.dumps(good) + "\n" + line + "\n")
    (folder / "val.jsonl").write_text(json.dumps(good) + "\n")
    outcome = smop("train", "-t", "cb", "--data", tmp_path, "-m", saved_models["t5"])
    refused(outcome, folder / "train.jsonl", *words)


def test_an_unknown_task_method_or_model_is_answered_with_the_nearest(smop, toy_task, saved_models):
    refused(smop("train", "-t", "coppa", "-m", saved_models["t5"]), "coppa", "copa")
    refused(
        smop("train", "-t", toy_task, "-m", saved_models["t5"], "--method", "smopp"),
        "did you mean smop",
    )
    refused(smop("train", "-t", toy_task, "-m", "t5-bse"), "t5-bse", "t5-base", "--model embedded")
    refused(smop("tasks", "rtee"), "did you mean rte")


def test_what_is_no_number_is_said_to_be_none(smop, toy_task):
    refused(
        smop("train", "-t", toy_task, "-m", "embedded", "--keep-texts", "nan"), "a finite number"
    )


def test_the_default_model_when_it_cannot_be_reached_names_the_embedded_one(smop, toy_task):
    refused(smop("train", "-t", toy_task), "model 't5-base' is not in reach", "--model embedded")


@pytest.mark.parametrize(("option", "name"), [("-k", "num_prompts"), ("-l", "num_virtual_tokens")])
def test_no_prompt_and_no_length(smop, toy_task, saved_models, option, name):
    refused(
        smop("train", "-t", toy_task, "-m", saved_models["t5"], option, 0),
        f"{name}=0",
        "at least 1",
    )


def test_options_that_cannot_be(smop, toy_task, saved_models, tmp_path):
    base = ("train", "-t", toy_task, "-m", saved_models["t5"], "-o", tmp_path / "run")
    refused(smop(*base, "--method", "single", "-k", 4), "num_prompts=4", "single")
    refused(smop(*base, "--lr", -1), "learning_rate=-1")
    refused(smop(*base, "--init", "luck"), "init='luck'")
    refused(smop(*base, "--report-to", "tensorbord"), "did you mean tensorboard")
    refused(smop(*base, "--precision", "int8"), "precision='int8'")
    refused(smop(*base, "--init", "adapter", "--init-adapter", tmp_path / "no"), tmp_path / "no")
    assert not (tmp_path / "run" / "result.json").exists()


def test_an_output_directory_that_is_in_use(smop, trained, toy_task, saved_models):
    before = (trained / "result.json").read_text()
    again = ("train", "-t", toy_task, "-m", saved_models["t5"], "-o", trained, *QUICK)
    refused(smop(*again), trained, "already holds a finished run", "--overwrite")
    refused(smop(*again, "--resume", "--overwrite"), "exclude each other")
    assert (trained / "result.json").read_text() == before
    assert smop(*again, "--resume")[0] == 0
    assert (trained / "result.json").read_text() == before
    assert smop(*again, "--overwrite")[0] == 0


def test_a_data_error_does_not_touch_an_earlier_run(smop, trained, saved_models, tmp_path):
    before = (trained / "result.json").read_text()
    outcome = smop(
        "train",
        "-t",
        "cb",
        "--data",
        tmp_path / "no",
        "-m",
        saved_models["t5"],
        "-o",
        trained,
        "--overwrite",
    )
    refused(outcome, tmp_path / "no")
    assert (trained / "result.json").read_text() == before


class TestAdapters:
    """Directories that hold no adapter, half of one, or somebody else's."""

    def test_a_directory_that_is_not_there(self, smop, tmp_path):
        refused(smop("evaluate", tmp_path / "no", "-t", "cb"), tmp_path / "no", "not a directory")

    def test_a_directory_without_a_configuration(self, smop, tmp_path):
        refused(smop("evaluate", tmp_path, "-t", "cb"), "adapter_config.json", "does not exist")

    def test_without_its_weights(self, smop, trained):
        (trained / "adapter" / "adapter_model.safetensors").unlink()
        refused(smop("evaluate", trained), "adapter_model.safetensors", "does not exist")

    def test_a_pickle_is_not_read(self, smop, trained, tmp_path):
        path = trained / "adapter" / "adapter_model.safetensors"
        torch.save(load_file(path), trained / "adapter" / "adapter_model.bin")
        path.unlink()
        refused(smop("evaluate", trained), "adapter_model.bin", "pickle", "safetensors")

    @pytest.mark.parametrize("keep", [0, 7, 100, -8])
    def test_a_file_that_was_cut_short(self, smop, trained, keep, tmp_path):
        shutil.copytree(trained / "adapter", tmp_path / "alone")
        path = tmp_path / "alone" / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:keep])
        (trained / "in.jsonl").write_text('{"text": "the cat is red"}\n')
        refused(smop("predict", path.parent, trained / "in.jsonl"), path, "damaged")

    def test_a_file_that_was_overwritten_with_something_else(self, smop, trained):
        path = trained / "adapter" / "adapter_model.safetensors"
        path.write_bytes(b"\xff" * 4096)
        refused(smop("evaluate", trained), path, "damaged")

    def test_prompts_of_another_width(self, smop, trained):
        path = trained / "adapter" / "adapter_model.safetensors"
        tensors = load_file(path)
        key = next(name for name in tensors if name.endswith("smop_adapters.prompts"))
        tensors[key] = torch.zeros(4, 5, 768)
        save_file(tensors, path)
        refused(smop("evaluate", trained), path, "width 768", "32 wide")

    def test_prompts_of_another_shape(self, smop, trained):
        path = trained / "adapter" / "adapter_model.safetensors"
        tensors = load_file(path)
        key = next(name for name in tensors if name.endswith("smop_adapters.prompts"))
        tensors[key] = torch.zeros(2, 5, 32)
        save_file(tensors, path)
        refused(smop("evaluate", trained), "shape (2, 5, 32)", "expected", "(4, 5, 32)")

    def test_a_configuration_that_is_not_json(self, smop, trained):
        path = trained / "adapter" / "adapter_config.json"
        path.write_text('{"peft_type": "SMOP",')
        refused(smop("evaluate", trained), path, "line 1", "JSON")

    def test_a_configuration_of_an_unknown_kind(self, smop, trained):
        path = trained / "adapter" / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"peft_type": "NOPE"}))
        refused(smop("evaluate", trained), path, "NOPE")

    def test_an_adapter_without_its_run_needs_the_task(self, smop, trained, tmp_path):
        shutil.copytree(trained / "adapter", tmp_path / "alone")
        (tmp_path / "alone" / "predictor.json").unlink()
        (tmp_path / "in.jsonl").write_text('{"text": "the cat is red"}\n')
        refused(smop("predict", tmp_path / "alone", tmp_path / "in.jsonl"), "give --task")

    @pytest.mark.parametrize("command", ["evaluate", "predict", "doctor", "routes", "report"])
    def test_a_run_that_is_not_finished(self, smop, trained, command):
        (trained / "result.json").unlink()
        refused(smop(command, trained), "not finished", "--resume")
        (trained / "failure.json").write_text('{"reason": "the disk is full; make room"}')
        refused(smop(command, trained), "not finished: the disk is full; make room")
        for reason in ("{", "[]", '{"reason": null}', '{"reason": " "}', '{"reason": ["a"]}'):
            (trained / "failure.json").write_text(reason)
            refused(smop(command, trained), "is not finished; go on with it by smop train --resume")


def test_input_to_predict_that_cannot_be_used(smop, trained, tmp_path):
    path = tmp_path / "input.jsonl"
    path.write_text('{"text": "the cat is red"}\n{"txt": "the dog"}\n')
    refused(smop("predict", trained, path), path, "line 2", "text")
    refused(smop("predict", trained, tmp_path / "no.jsonl"), tmp_path / "no.jsonl")


def test_a_specification_with_an_unknown_key(smop, trained):
    path = trained / "spec.yaml"
    path.write_text(path.read_text() + "sede: 3\n")
    refused(smop("evaluate", trained), path, "sede", "did you mean seed")


def test_inputs_that_are_too_long_are_counted_and_said(smop, toy_task, saved_models, tmp_path):
    command = ("train", "-t", toy_task, "-m", saved_models["t5"], "-o", tmp_path / "run", *QUICK)
    code, out, err = smop(*command, "--max-length", 7)  # six words and their end
    assert code == 0
    assert "cut" not in err + out
    code, out, err = smop(*command, "--max-length", 6, "--overwrite")
    assert code == 0
    assert "48 of 48 training inputs are longer than 6 tokens and were cut" in err
    assert "6 test inputs were cut" in out
    refused(smop(*command, "--max-length", 4, "--overwrite"), "max_length=4 leaves no room")


def test_ctrl_c_says_how_to_go_on(smop, toy_task, saved_models, tmp_path, monkeypatch):
    from peft_smop.training.trainer import ScoringTrainer

    def interrupted(self, *args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(ScoringTrainer, "training_step", interrupted)
    code, _, err = smop(
        "train", "-t", toy_task, "-m", saved_models["t5"], "-o", tmp_path / "run", *QUICK
    )
    assert code == 130
    assert "--resume" in err
    assert "Traceback" not in err


def test_places_that_cannot_be_written_to(smop, trained, toy_task, saved_models, tmp_path):
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "run"
    refused(smop("train", "-t", toy_task, "-m", saved_models["t5"], "-o", place), "is a file")
    refused(smop("evaluate", trained, "-o", tmp_path), "is a directory")


def test_a_damaged_model_is_not_called_unknown(smop, toy_task, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{")
    (tmp_path / "model" / "model.safetensors").write_text("")
    refused(smop("train", "-t", toy_task, "-m", tmp_path / "model"), "cannot be read")


class TestWhatIsReadAgain:
    """Commands that read a run's task again notice whether it is still the one that was trained."""

    @pytest.fixture
    def run(self, smop, toy_task, saved_models, tmp_path):
        """A finished run on a task whose files may be changed."""
        shutil.copytree(toy_task.parent, tmp_path / "task")
        yaml, run = tmp_path / "task" / "toy.yaml", tmp_path / "run"
        code, _, err = smop("train", "-t", yaml, "-m", saved_models["t5"], "-o", run, *QUICK)
        assert code == 0, err
        return run

    @pytest.mark.parametrize("part", ["train", "validation", "test"])
    @pytest.mark.parametrize("command", ["evaluate", "routes"])
    def test_other_rows_in_a_part_are_warned_of(self, smop, run, command, part):
        assert "trained on" not in smop(command, run, "--part", part)[1]
        rows = run.parent / "task" / "rows.jsonl"
        rows.write_text("\n".join(rows.read_text().splitlines()[:50]) + "\n")
        code, out, _ = smop(command, run, "--part", part)
        assert code == 0
        assert f"these {part} examples are not the run's own; some may have been trained" in out

    @pytest.mark.parametrize("command", ["evaluate", "routes"])
    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ("warm: warm, cold: cold", "cold: cold, warm: warm"),
            ("'{text}'", "'text: {text}'"),
            ("cold: cold", "cold: warm cold"),
        ],
    )
    def test_another_template_label_or_verbalizer_is_refused(
        self, smop, run, command, before, after
    ):
        yaml = run.parent / "task" / "toy.yaml"
        assert before in yaml.read_text()
        yaml.write_text(yaml.read_text().replace(before, after))
        refused(smop(command, run), "not the one that was trained")

    def test_another_seed_s_rows_are_warned_of(self, smop, run):
        code, out, _ = smop("evaluate", run, "--seed", 5)
        assert code == 0
        assert "some may have been trained on" in out

    def test_predict_needs_no_data_and_keeps_the_task_that_was_trained(self, smop, run, tmp_path):
        path = tmp_path / "input.jsonl"
        path.write_text('{"text": "the cat is red"}\n')
        before = smop("predict", run, path)
        shutil.rmtree(run.parent / "task")
        assert smop("predict", run, path) == before

    @pytest.mark.parametrize("command", ["evaluate", "routes", "predict"])
    def test_a_task_that_is_not_the_run_s_is_refused(self, smop, run, command):
        refused(smop(command, run, "--task", "cb"), "--task cb", "toy", "leave --task out")

    @pytest.mark.parametrize("command", ["evaluate", "routes"])
    @pytest.mark.parametrize("content", ["{", "[]", '{"parts": {}}'])
    def test_a_damaged_record_of_the_split_is_named(self, smop, run, command, content):
        (run / "split.json").write_text(content)
        refused(smop(command, run), run / "split.json", "was altered since the run finished")


def test_a_loss_that_explodes_is_one_sentence(smop, toy_task, saved_models, tmp_path):
    outcome = smop(
        "train", "-t", toy_task, "-m", saved_models["t5"], "-o", tmp_path / "run", "--max-steps", 8,
        "--eval-steps", 2, "--batch-size", 8, "--lr", 1e30, "--optimizer", "adamw_torch",
    )  # fmt: skip
    line = refused(outcome, "stopped at step", "lower the learning rate")
    assert "not finite" in line or "loss became" in line


def test_what_is_nearly_the_packaged_model_is_no_question_to_the_hub(smop, monkeypatch):
    from peft_smop.methods import backbones

    monkeypatch.setattr(backbones, "AutoConfig", None)  # nothing is looked for
    outcome = smop("train", "-t", "medley", "-m", "embeded", *QUICK)
    refused(outcome, "unknown model 'embeded'; did you mean embedded")


def test_how_many_seeds_is_a_number_above_none(smop, toy_task, tmp_path):
    spec = tmp_path / "few.yaml"
    spec.write_text(f"tasks: {toy_task}\nmethods: single\nseeds: -2\n")
    refused(smop("sweep", spec), "seeds=-2; expected how many, at least 1, or a list")
