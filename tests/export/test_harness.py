"""In lm-evaluation-harness an adapter scores what it scores here."""

import json
from importlib import import_module

import pytest
import torch
import yaml
from exporting import TEXTS, TOY, save
from torch.testing import assert_close

from peft_smop import Predictor
from peft_smop.errors import ConfigError
from peft_smop.tasks import Example

lm_eval = pytest.importorskip("lm_eval", reason="pip install lm-eval")
import_module("peft_smop.export.harness")  # the harness then knows the model `smop`
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


class Request:
    """As the harness hands them over."""

    def __init__(self, *args):
        self.args = args


def scores_here(predictor, text):
    """Of both labels, each scored by a pass of its own over text and answer."""
    from peft_smop.scoring import predict

    (loaded,) = predictor.adapters.values()
    (said,) = predict(predictor.model, loaded.formulation, [Example("one", text, None)])
    return said.log_probabilities


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_its_own_task_has_the_score_that_smop_evaluate_gives(
    saved_models, toy_task, tmp_path, smop, kind
):
    from lm_eval.tasks import TaskManager

    run, out = tmp_path / "run", tmp_path / "out"
    options = ["--max-steps", 3, "--batch-size", 4, "--lr", 0.5]
    code, _, err = smop(
        "train", "--task", toy_task, "--model", saved_models[kind], "-o", run, *options
    )
    assert code == 0, err
    code, _, err = smop("export", run, "-o", out, "--format", "lm-eval")
    assert code == 0, err
    smop("evaluate", run, "-o", tmp_path / "score.json")
    said = lm_eval.simple_evaluate(
        model="smop",
        model_args={"pretrained": str(run), "batch_size": 7},
        tasks=["smop_toy"],
        task_manager=TaskManager(include_path=str(out)),
        bootstrap_iters=0,
    )
    score = json.loads((tmp_path / "score.json").read_text())
    assert said["n-samples"]["smop_toy"]["effective"] == score["examples"]
    assert 100 * said["results"]["smop_toy"]["acc,none"] == pytest.approx(score["value"])
    predictor = Predictor.load(run)
    for sample in said["samples"]["smop_toy"]:
        found = torch.tensor([float(one[0][0]) for one in sample["resps"]])
        expected = torch.tensor(scores_here(predictor, sample["doc"]["text"]))
        assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_router_does_not_see_the_continuation(saved_models, tmp_path):
    from peft_smop.export.harness import SMoPLM

    model = SMoPLM(str(save(saved_models["llama"], tmp_path / "a")), batch_size=2)
    tuner = model.predictor.model.base_model
    context = TEXTS[0] + "\nanswer:"
    model.loglikelihood([Request(context, " warm"), Request(context, " the fox is cold")])
    ids = torch.tensor([model._context(context)])
    with torch.no_grad():
        model.predictor.model(input_ids=ids)
    alone = int(tuner.last_routes.chosen[0])
    chosen = []
    layer = tuner.smop_layer
    mark = layer.hooks.backbone.module.register_forward_hook(
        lambda *_: chosen.extend(tuner.last_routes.chosen.tolist())
    )
    model.loglikelihood([Request(context, " warm"), Request(context, " the fox is cold")])
    mark.remove()
    assert set(chosen) == {alone}


def test_a_continuation_is_greedy_where_the_model_would_write_it(saved_models, tmp_path):
    from peft_smop.export.harness import SMoPLM

    adapter = save(saved_models["llama"], tmp_path / "a")
    model, predictor = SMoPLM(str(adapter)), Predictor.load(adapter)
    context = TEXTS[1] + "\nanswer:"
    (written,) = predictor.generate([TEXTS[1]], max_new_tokens=3, do_sample=False)
    said = model.loglikelihood([Request(context, " " + written), Request(context, " cow cow cow")])
    assert [greedy for _, greedy in said] == [True, False]
    assert said[0][0] > said[1][0]
    options = {"until": [" "], "max_gen_toks": 3}
    assert model.generate_until([Request(context, options)]) == [written.split(" ")[0]]


def test_what_means_nothing_here_is_refused_and_not_left_out(saved_models, tmp_path):
    from peft_smop.export.harness import SMoPLM

    adapter = str(save(saved_models["llama"], tmp_path / "a"))
    with pytest.raises(ConfigError, match="unknown model argument 'devise'; did you mean device"):
        SMoPLM(adapter, devise="cpu")
    model = SMoPLM(adapter, device="cpu", max_batch_size=None)
    with pytest.raises(ConfigError, match="unknown generation option 'num_beams'"):
        model.generate_until([Request(TEXTS[0], {"until": [], "num_beams": 4})])
    drawn = {"until": [], "max_gen_toks": 6, "temperature": 50.0}
    cold = {"until": [], "max_gen_toks": 6, "temperature": 0.0}
    torch.manual_seed(0)
    warm, greedy = (model.generate_until([Request(TEXTS[0], o)]) for o in (drawn, cold))
    assert warm != greedy


def test_the_task_s_file_says_what_the_harness_needs(saved_models, toy_task, tmp_path, smop):
    adapter = save(saved_models["llama"], tmp_path / "a", TOY)
    out = tmp_path / "out"
    code, _, err = smop("export", adapter, "-o", out, "--format", "lm-eval", "-t", toy_task)
    assert code == 0, err
    said = yaml.safe_load((out / "smop_toy.yaml").read_text())
    assert said["doc_to_text"] == "{{text}}\nanswer:"
    assert said["doc_to_choice"] == ["warm", "cold"]
    rows = [json.loads(line) for line in (out / "test.jsonl").read_text().splitlines()]
    assert all("red" in r["text"] or "green" in r["text"] for r in rows if r["answer"] == 0)


def test_encoders_are_refused(saved_models, tmp_path):
    from peft_smop.export.harness import SMoPLM

    with pytest.raises(ConfigError, match="smop evaluate"):
        SMoPLM(str(save(saved_models["bert"], tmp_path / "a")))
