"""Tiny random models of every kind of backbone, and batches for them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from peft import PeftModel, get_peft_model
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from peft_smop import SMoPConfig
from peft_smop.tuner.layer import SMoPLayer

WIDTH = 32
VOCABULARY = 100
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
_DECODER = {
    **COMMON,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _t5() -> PreTrainedModel:
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY,
            d_model=WIDTH,
            d_ff=64,
            num_layers=2,
            num_decoder_layers=2,
            num_heads=4,
            d_kv=8,
            decoder_start_token_id=0,
        )
    )


def _bart() -> PreTrainedModel:
    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=VOCABULARY,
            d_model=WIDTH,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            max_position_embeddings=64,
            forced_eos_token_id=None,
        )
    )


def _gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=WIDTH,
            n_layer=2,
            n_head=4,
            n_positions=64,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            loss_type="ForCausalLMLoss",
        )
    )


def _opt() -> PreTrainedModel:
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            ffn_dim=64,
            max_position_embeddings=64,
            word_embed_proj_dim=WIDTH,
            pad_token_id=1,
        )
    )


@dataclass(frozen=True)
class Kind:
    """One architecture, and what is true of it."""

    build: Callable[[], PreTrainedModel]
    task_type: str
    left_padding_harmless: bool = True
    """BART counts positions by slot and BERT pools the first slot, so that left padding changes
    what the bare models answer as well."""

    def model(self, seed: int = 0) -> PreTrainedModel:
        torch.manual_seed(seed)
        return self.build().eval()


KINDS = {
    "t5": Kind(_t5, "SEQ_2_SEQ_LM"),
    "bart": Kind(_bart, "SEQ_2_SEQ_LM", left_padding_harmless=False),
    "llama": Kind(lambda: LlamaForCausalLM(LlamaConfig(**_DECODER)), "CAUSAL_LM"),
    "qwen2": Kind(lambda: Qwen2ForCausalLM(Qwen2Config(**_DECODER)), "CAUSAL_LM"),
    "gemma3": Kind(
        lambda: Gemma3ForCausalLM(Gemma3TextConfig(**_DECODER, head_dim=8, sliding_window=4)),
        "CAUSAL_LM",
    ),
    "gpt2": Kind(_gpt2, "CAUSAL_LM"),
    "opt": Kind(_opt, "CAUSAL_LM"),
    "bert": Kind(
        lambda: BertForSequenceClassification(BertConfig(**COMMON)),
        "SEQ_CLS",
        left_padding_harmless=False,
    ),
    "roberta": Kind(
        lambda: RobertaForSequenceClassification(RobertaConfig(**COMMON, pad_token_id=1)),
        "SEQ_CLS",
        left_padding_harmless=False,
    ),
}
GENERATORS = [name for name, kind in KINDS.items() if kind.task_type != "SEQ_CLS"]
DECODERS = [name for name, kind in KINDS.items() if kind.task_type == "CAUSAL_LM"]
THREE = ["t5", "llama", "bert"]


def batch(kind: Kind, *, rows: int = 4, tokens: int = 7, seed: int = 1) -> dict[str, torch.Tensor]:
    """Random rows; the second is padded on the right, the third, where harmless, on the left."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (rows, tokens), generator=generator)
    mask = torch.ones_like(ids)
    if rows > 1:
        mask[1, -2:] = 0
    if rows > 2 and kind.left_padding_harmless:
        mask[2, :3] = 0
    made = {"input_ids": ids, "attention_mask": mask}
    if kind.task_type == "SEQ_2_SEQ_LM":
        made["labels"] = torch.randint(3, VOCABULARY, (rows, 3), generator=generator)
    return made


def answered(kind: Kind, *, rows: int = 5) -> dict[str, torch.Tensor]:
    """Texts of several lengths, padded on either side, each with an answer behind it."""
    made = batch(kind, rows=rows, tokens=9)
    labels = made["input_ids"].masked_fill(made["attention_mask"] == 0, -100)
    for i in range(rows):
        labels[i, : 4 + i % 3] = -100
    return {**made, "labels": labels}


def row(made: dict[str, torch.Tensor], i: int) -> dict[str, torch.Tensor]:
    """Row i alone and without padding."""
    keep = made["attention_mask"][i].bool()
    return {k: v[i : i + 1] if k == "labels" else v[i : i + 1][:, keep] for k, v in made.items()}


def attended(
    kind: Kind, made: dict[str, torch.Tensor], logits: torch.Tensor, i: int
) -> torch.Tensor:
    """The logits of row i that belong to tokens which attention keeps."""
    own = logits[i : i + 1]
    return own[:, made["attention_mask"][i].bool()] if kind.task_type == "CAUSAL_LM" else own


def adapted(kind: Kind, *, seed: int = 0, adapter: str = "default", **options) -> PeftModel:
    """The kind with a SMoP adapter whose router is decided enough for rows to differ."""
    model = get_peft_model(
        kind.model(seed), SMoPConfig(task_type=kind.task_type, **options), adapter_name=adapter
    )
    return decided(model, adapter)


def decided(model: PeftModel, adapter: str = "default", seed: int = 5) -> PeftModel:
    """Draw prompts that matter and a router that sends rows different ways."""
    generator = torch.Generator().manual_seed(seed)
    layer, spread = model.smop_layer, model.get_input_embeddings().weight.detach().float().std()
    with torch.no_grad():
        prompts = layer[adapter].prompts
        prompts.copy_(torch.randn(prompts.shape, generator=generator) * spread * 2)
        if layer[adapter].router is not None:
            router = layer[adapter].router
            router.copy_(torch.randn(router.shape, generator=generator) / spread)
    return model.eval()


def alone(bare: PreTrainedModel, smop: SMoPLayer, made: dict[str, torch.Tensor], name="default"):
    """What the method says about ONE row without padding, by the bare model and four lines.

    Returns:
        The row's route, its probability, and its spliced embeddings [p_c P_c; X].
    """
    assert len(made["input_ids"]) == 1
    x = bare.get_input_embeddings()(made["input_ids"])
    p = (x[0].float().mean(dim=0) @ smop[name].router).softmax(dim=0)
    c = p.argmax()
    return c, p[c], torch.cat([(p[c] * smop[name].prompts[c])[None].to(x.dtype), x], dim=1)


def answer(kind: Kind, bare: PreTrainedModel, x: torch.Tensor, made: dict[str, torch.Tensor]):
    """The bare model's logits for spliced embeddings, with the prompt's places taken out."""
    width = x.shape[1] - made["input_ids"].shape[1]
    if kind.task_type == "SEQ_2_SEQ_LM":
        return bare(inputs_embeds=x, labels=made["labels"]).logits
    if kind.task_type == "CAUSAL_LM":
        return bare(inputs_embeds=x).logits[:, width:]
    states = bare.base_model(inputs_embeds=x).last_hidden_state[:, width:]
    pooler = bare.base_model.pooler
    return bare.classifier(states if pooler is None else pooler(states))


def without_dropout(model: torch.nn.Module) -> torch.nn.Module:
    """Switch the backbone's dropout off where training must be compared to the last digits."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model
