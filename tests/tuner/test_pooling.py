"""A head on an encoder may read the mean of its text's states in place of the first token's."""

import threading

import pytest
import torch
from accelerate import cpu_offload
from peft import PeftModel, get_peft_model
from torch.testing import assert_close
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForTokenClassification,
    BigBirdConfig,
    BigBirdForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from peft_smop import SMoPConfig
from peft_smop.errors import CheckpointError, ConfigError
from peft_smop.tuner.backbone import Backbone
from peft_smop.tuner.pooling import with_means
from peft_smop.tuner.verification import _moved, reads_first
from tiny import COMMON, KINDS, VOCABULARY, adapted, alone, batch, decided, row

CLOSE = {"rtol": 0, "atol": 2e-6}
HEADS = {
    "bert": lambda: KINDS["bert"].model(),
    "roberta": lambda: KINDS["roberta"].model(),
    "albert": lambda: AlbertForSequenceClassification(AlbertConfig(embedding_size=16, **COMMON)),
    "big_bird": lambda: BigBirdForSequenceClassification(
        BigBirdConfig(attention_type="original_full", **COMMON)
    ),
    "distilbert": lambda: DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=VOCABULARY, dim=32, n_layers=2, n_heads=4, hidden_dim=64)
    ),
    "modernbert": lambda: ModernBertForSequenceClassification(
        ModernBertConfig(classifier_pooling="cls", pad_token_id=0, **COMMON)
    ),
}


def built(name):
    torch.manual_seed(0)
    return HEADS[name]().eval()


def under_prompts(name, **options):
    model = get_peft_model(built(name), SMoPConfig(task_type="SEQ_CLS", **options))
    return decided(model)


def by_hand(model, bare, made, name="default"):
    """The head on the mean of a row's states: a bare model with its first state replaced."""
    _, _, x = alone(bare, model.smop_layer, made, name)
    width = x.shape[1] - made["input_ids"].shape[1]
    base, module = bare.base_model, bare.base_model

    def replaced(states):
        kept = states[:, width:].clone()
        kept[:, 0] = kept.mean(dim=1)
        return kept

    def after(_, args, output):
        output["last_hidden_state"] = replaced(output["last_hidden_state"])
        return output

    handles = [base.register_forward_hook(after)]
    pooler, kept = getattr(base, "pooler", None), {}
    if isinstance(pooler, torch.nn.Linear):  # it is handed the first state alone

        def keep(_, args, output):
            kept["states"] = output[0]

        handles += [
            module.encoder.register_forward_hook(keep),
            pooler.register_forward_pre_hook(lambda _, args: (replaced(kept["states"])[:, 0],)),
        ]
    elif pooler is not None:
        handles.append(pooler.register_forward_pre_hook(lambda _, args: (replaced(args[0]),)))
    try:
        return bare(inputs_embeds=x).logits
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("name", HEADS)
def test_every_row_s_head_reads_the_mean_of_its_text_s_states(name):
    model, bare = under_prompts(name, pooling="mean"), built(name)
    bare.load_state_dict(
        {
            key.replace(".modules_to_save.default", ""): value
            for key, value in model.get_base_model().state_dict().items()
            if "smop" not in key and ".original_module." not in key
        }
    )
    made = batch(KINDS["bert"])
    found = model(**made).logits
    for i in range(len(found)):
        assert_close(found[i : i + 1], by_hand(model, bare, row(made, i)), **CLOSE)
    own = under_prompts(name)(**made).logits
    assert not torch.allclose(found, own, atol=1e-4)
    assert torch.equal(found, model(**made, return_dict=False)[0])


def test_the_mean_is_of_the_attended_tokens_in_the_first_one_s_place():
    states = torch.tensor([[[1.0], [2.0], [6.0]], [[1.0], [2.0], [6.0]]])
    mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
    assert with_means(states, mask, True)[:, :, 0].tolist() == [[3, 2, 6], [4, 2, 6]]
    some = torch.tensor([False, True])
    assert with_means(states, mask, some)[:, :, 0].tolist() == [[1, 2, 6], [4, 2, 6]]
    assert with_means(states, None, True)[:, 0, 0].tolist() == [3, 3]
    assert with_means(states, mask, False) is states


def test_rows_of_a_mixed_batch_each_have_their_own():
    kind = KINDS["bert"]
    model = adapted(kind, pooling="mean")
    model.add_adapter("first", SMoPConfig(task_type="SEQ_CLS", num_virtual_tokens=2))
    decided(model, "first", seed=6)
    made = batch(kind)
    names = ["first", "default", "__base__", "default"]
    mixed = model(**made, adapter_names=names).logits
    for i, name in enumerate(names):
        one = {key: value[i : i + 1] for key, value in made.items()}
        assert_close(mixed[i : i + 1], model(**one, adapter_names=[name]).logits, **CLOSE)


def test_saved_and_loaded_the_head_reads_what_it_read(tmp_path):
    kind = KINDS["bert"]
    model, made = adapted(kind, pooling="mean"), batch(kind)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(kind.model(), tmp_path).eval()
    assert torch.equal(loaded(**made).logits, model(**made).logits)
    place = tmp_path / "adapter_config.json"
    place.write_text(place.read_text().replace('"pooling": "mean"', '"pooling": "own"'))
    with pytest.raises(CheckpointError, match="trained with other options"):
        PeftModel.from_pretrained(kind.model(), tmp_path)


def test_the_prompt_learns_through_the_mean():
    model = adapted(KINDS["bert"], pooling="mean").train()
    model(**batch(KINDS["bert"]), labels=torch.tensor([0, 1, 0, 1])).loss.backward()
    layer = model.smop_layer["default"]
    assert layer.prompts.grad.abs().sum() > 0
    assert layer.router.grad.abs().sum() > 0


def _llama():
    config = LlamaConfig(pad_token_id=0, **COMMON)
    return LlamaForSequenceClassification(config)


def _xlnet():
    return XLNetForSequenceClassification(
        XLNetConfig(vocab_size=VOCABULARY, d_model=32, n_layer=2, n_head=4, d_inner=64)
    )


def _with_head(change, kind="bert"):
    model = KINDS[kind].model()
    change(model.classifier)
    return model


def _zeroed(model, head):
    torch.nn.init.zeros_(getattr(model, head).weight)
    return model


def _wide(model):
    """States beside which a step of 1 is nothing in half precision."""
    with torch.no_grad():
        model.bert.encoder.layer[-1].output.LayerNorm.weight.fill_(1e4)
    return model.to(torch.bfloat16)


def _cancelling(head):
    """Labels' logits whose sum is the same whatever the states are."""
    with torch.no_grad():
        head.weight[1] = -head.weight[0]


def _without_return_dict(model):
    model.config.return_dict = False
    return model


READ = {
    "as ever": lambda: KINDS["bert"].model(),
    "logits that cancel": lambda: _with_head(_cancelling),
    "tuples by its configuration": lambda: _without_return_dict(KINDS["bert"].model()),
    "a head of zeros": lambda: _zeroed(KINDS["bert"].model(), "classifier"),
    "wide states in half precision": lambda: _wide(KINDS["bert"].model()),
    "weights elsewhere": lambda: cpu_offload(KINDS["bert"].model()),
    "half precision": lambda: KINDS["bert"].model().to(torch.bfloat16),
}


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_heads_that_read_the_first_token_are_known_in_any_mode(name, mode):
    model = READ[name]()
    with mode():
        assert reads_first(model)
        get_peft_model(model, SMoPConfig(task_type="SEQ_CLS", pooling="mean"))
        assert reads_first(model)  # with an adapter in it


def test_a_head_of_zeros_is_one_after_it_was_tried():
    model = _zeroed(KINDS["bert"].model(), "classifier")
    assert reads_first(model)
    assert not model.classifier.weight.any()


def test_cancelling_logits_of_a_head_that_reads_others_do_not_hide_it():
    model = _llama()
    _cancelling(model.score)
    assert not reads_first(model)


def test_trying_a_head_leaves_the_last_routes_alone():
    model = adapted(KINDS["bert"])
    model(**batch(KINDS["bert"]))
    before = model.last_routes.chosen
    model.add_adapter("mean", SMoPConfig(task_type="SEQ_CLS", pooling="mean"))
    assert torch.equal(model.last_routes.chosen, before)


REFUSED = {
    "a decoder's head": (_llama, "SEQ_CLS", "LlamaForSequenceClassification's reads others"),
    "a head on the last token": (_xlnet, "SEQ_CLS", "reads others: leave pooling out"),
    "a head on the mean": (
        lambda: ModernBertForSequenceClassification(
            ModernBertConfig(classifier_pooling="mean", pad_token_id=0, **COMMON)
        ),
        "SEQ_CLS",
        "reads others",
    ),
    "a head on every token": (
        lambda: BertForTokenClassification(BertConfig(**COMMON)),
        None,
        "BertForTokenClassification has no such head",
    ),
    "no head": (lambda: KINDS["bert"].model().bert, None, "BertModel has no such head"),
    "a decoder's head of zeros": (
        lambda: _zeroed(_llama(), "score"),
        "SEQ_CLS",
        "LlamaForSequenceClassification's reads others",
    ),
    "a head that says nothing": (
        lambda: _with_head(lambda head: torch.nn.init.constant_(head.bias, torch.nan)),
        "SEQ_CLS",
        "says nothing finite",
    ),
    "an encoder-decoder": (lambda: KINDS["t5"].model(), None, "has no such head"),
    "another task": (lambda: KINDS["t5"].model(), "SEQ_2_SEQ_LM", "not task_type='SEQ_2_SEQ_LM'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_such_head_says_so_and_stays_as_it_was(name):
    build, task_type, said = REFUSED[name]
    model = build()
    with pytest.raises(ConfigError, match=said):
        get_peft_model(model, SMoPConfig(task_type=task_type, pooling="mean"))
    assert not any(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    assert not hasattr(model, "smop")


def test_trying_a_head_draws_nothing_and_leaves_modes_and_gradients_alone():
    model = KINDS["bert"].model()
    model.bert.train()
    torch.manual_seed(3)
    get_peft_model(model, SMoPConfig(task_type="SEQ_CLS", routing="single", pooling="mean"))
    drawn = torch.rand(1)
    other = KINDS["bert"].model()
    torch.manual_seed(3)
    get_peft_model(other, SMoPConfig(task_type="SEQ_CLS", routing="single"))
    assert torch.equal(drawn, torch.rand(1))
    assert model.bert.training
    assert all(p.grad is None for p in model.parameters())


def test_the_mean_of_a_long_text_is_exact_in_half_precision():
    """A sum of 600 ones is no number of bf16's, which has eight bits."""
    states = torch.ones(1, 600, 1, dtype=torch.bfloat16)
    assert with_means(states, None, True)[0, 0, 0] == 1


def test_while_a_head_is_tried_other_threads_are_answered_as_ever():
    model, made = KINDS["bert"].model(), batch(KINDS["bert"])
    with torch.no_grad():
        expected, found = model(**made).logits, []

    @torch.inference_mode()
    def asked():
        found.append(model(**made).logits)

    with _moved(Backbone.of(model), slice(None)):
        thread = threading.Thread(target=asked)
        thread.start()
        thread.join()
    assert torch.equal(found[0], expected)
