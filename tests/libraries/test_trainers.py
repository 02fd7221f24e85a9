"""Other people's trainers, as they are installed: they train the prompts and nothing else."""

import math

import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from peft_smop import RoutingCallback, SMoPConfig
from peft_smop.errors import ConfigError
from tiny import KINDS, adapted, batch

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
QUIET = {"report_to": "none", "disable_tqdm": True, "use_cpu": True}
WORDS = ("warm", "cold", "the", "cat", "is", "red", "blue", "number")


def decoder(saved_models):
    tokenizer = AutoTokenizer.from_pretrained(saved_models["llama"])
    return AutoModelForCausalLM.from_pretrained(saved_models["llama"]), tokenizer


def changed(model, before):
    return {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}


def values(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


# -- transformers --------------------------------------------------------------------------------


def rows(count=8):
    made = batch(KINDS["llama"], rows=count)
    ids = made["input_ids"]
    labels = ids.index_fill(1, torch.arange(4), -100)
    return [{"input_ids": ids[i], "labels": labels[i]} for i in range(count)]


@pytest.mark.parametrize("how", ["label smoothing", "a loss of its own"])
def test_a_trainer_that_withholds_the_labels_is_refused_or_given_a_scope(how, tmp_path):
    """The router must not see the answer, whoever computes the loss."""

    def fit(model):
        options = {"label_smoothing_factor": 0.1} if how == "label smoothing" else {}
        more = {}
        if how == "a loss of its own":
            more["compute_loss_func"] = lambda outputs, labels, **_: outputs.logits.square().mean()
        args = TrainingArguments(
            tmp_path, max_steps=2, per_device_train_batch_size=4, save_strategy="no", **options,
            **QUIET,
        )  # fmt: skip
        Trainer(model=model, args=args, train_dataset=rows(), **more).train()

    if how == "label smoothing":
        with pytest.raises(ConfigError, match=r"no labels reached the model.*router_scope=16"):
            fit(adapted(KINDS["llama"]))
    model = adapted(KINDS["llama"], router_scope=3)
    before = values(model)
    fit(model)
    assert all("smop" in name for name in changed(model, before))
    assert model.smop_layer["default"].steps == 2


# -- TRL -----------------------------------------------------------------------------------------


def test_trl_s_sft_trains_on_prompts_and_completions(saved_models, tmp_path):
    trl = pytest.importorskip("trl")
    model, tokenizer = decoder(saved_models)
    data = Dataset.from_list(
        [{"prompt": f"the cat is {c} number", "completion": " warm"} for c in ("red", "blue")] * 4
    )
    args = trl.SFTConfig(
        tmp_path, max_steps=2, per_device_train_batch_size=4, learning_rate=0.1,
        save_strategy="no", bf16=False, logging_steps=1, eval_strategy="steps", eval_steps=2,
        **QUIET,
    )  # fmt: skip
    config = SMoPConfig(task_type="CAUSAL_LM", num_prompts=3)
    trainer = trl.SFTTrainer(
        model=model, args=args, train_dataset=data, eval_dataset=data, processing_class=tokenizer,
        peft_config=config,
    )  # fmt: skip
    trainer.add_callback(RoutingCallback(trainer))
    before = values(trainer.model)
    trainer.train()
    history = trainer.state.log_history
    assert sum("routing_entropy" in entry for entry in history) == 2
    assert sum("eval_routing_regret" in entry for entry in history) == 1
    moved = changed(trainer.model, before)
    assert moved
    assert all("smop" in name for name in moved)
    assert trainer.model.smop_layer["default"].steps == 2


def test_trl_s_sft_with_packing_is_refused(saved_models, tmp_path):
    trl = pytest.importorskip("trl")
    model, tokenizer = decoder(saved_models)
    data = Dataset.from_list([{"text": "the cat is red number warm"}] * 8)
    args = trl.SFTConfig(
        tmp_path, max_steps=1, packing=True, max_length=16, padding_free=True,
        per_device_train_batch_size=4, save_strategy="no", bf16=False, **QUIET,
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        model=model, args=args, train_dataset=data, processing_class=tokenizer,
        peft_config=SMoPConfig(task_type="CAUSAL_LM", router_scope=2),
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"holds several sequences"):
        trainer.train()


@pytest.mark.parametrize("start", ["a new adapter", "a trained one"])
def test_trl_s_dpo_starts_where_its_reference_stands(saved_models, tmp_path, start):
    """With a trained adapter the loss of the first step is ln 2: both are the same."""
    trl = pytest.importorskip("trl")
    model, tokenizer = decoder(saved_models)
    config = SMoPConfig(task_type="CAUSAL_LM", num_prompts=3, router_scope=4)
    more = {"peft_config": config}
    if start == "a trained one":
        model = get_peft_model(model, config)
        with torch.no_grad():
            for p in model.smop_layer["default"].parameters():
                p.normal_()
        more = {}
    data = Dataset.from_list(
        [
            {"prompt": f"the cat is {c}", "chosen": " warm", "rejected": " cold"}
            for c in ("red", "blue")
        ]
        * 4
    )
    args = trl.DPOConfig(
        tmp_path, max_steps=2, per_device_train_batch_size=4, learning_rate=0.1, logging_steps=1,
        save_strategy="no", bf16=False, **QUIET,
    )  # fmt: skip
    trainer = trl.DPOTrainer(
        model=model, args=args, train_dataset=data, processing_class=tokenizer, **more
    )
    before = values(trainer.model)
    trainer.train()
    moved = changed(trainer.model, before)
    assert moved
    assert all(".default." in name and "smop" in name for name in moved)
    if start == "a trained one":
        first = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
        assert first == pytest.approx(math.log(2), abs=1e-4)
        assert "ref" in trainer.model.peft_config


# -- sentence-transformers -----------------------------------------------------------------------


def test_sentence_transformers_trains_an_adapted_encoder_saves_and_loads_it(saved_models, tmp_path):
    st = pytest.importorskip("sentence_transformers")
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    plain = st.SentenceTransformer(saved_models["bert"], device="cpu")
    texts = ["the cat is red", "the dog is blue"]
    bare = plain.encode(texts)
    plain.add_adapter(SMoPConfig(task_type="FEATURE_EXTRACTION", num_prompts=3))
    assert not (plain.encode(texts) == bare).all()  # forward is called past the hooks
    before = values(plain)
    args = st.SentenceTransformerTrainingArguments(
        tmp_path / "run", max_steps=2, per_device_train_batch_size=4, learning_rate=0.1,
        save_strategy="no", **QUIET,
    )  # fmt: skip
    data = Dataset.from_list([{"anchor": f"the {a} is red", "positive": f"{a} red"} for a in WORDS])
    loss = MultipleNegativesRankingLoss(plain)
    st.SentenceTransformerTrainer(model=plain, args=args, train_dataset=data, loss=loss).train()
    moved = changed(plain, before)
    assert moved
    assert all("smop" in name for name in moved)
    plain.eval()
    expected = plain.encode(texts)
    plain.save_pretrained(str(tmp_path / "saved"))
    again = st.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert again.encode(texts) == pytest.approx(expected, abs=1e-5)


def test_an_adapted_encoder_inside_sentence_transformers_is_the_adapted_encoder(saved_models):
    st = pytest.importorskip("sentence_transformers")
    tokenizer = AutoTokenizer.from_pretrained(saved_models["bert"])
    model = st.SentenceTransformer(saved_models["bert"], device="cpu")
    base = AutoModel.from_pretrained(saved_models["bert"])
    peft = get_peft_model(base, SMoPConfig(task_type="FEATURE_EXTRACTION")).eval()
    model[0].model = peft.get_base_model()
    made = tokenizer(["the cat is red"], return_tensors="pt")
    with torch.no_grad():
        expected = peft(**made).last_hidden_state.mean(dim=1)[0]
    found = torch.from_numpy(model.encode(["the cat is red"])[0])
    assert torch.allclose(found, expected, atol=1e-5) or torch.allclose(
        found, torch.nn.functional.normalize(expected, dim=0), atol=1e-5
    )
    assert isinstance(peft, PeftModel)
