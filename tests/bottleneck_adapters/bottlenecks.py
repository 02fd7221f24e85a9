"""Models with bottlenecks that change something, and the sub-layers that should have one."""

import torch
from peft import PeftModel, get_peft_model

from peft_smop.bottleneck import BottleneckConfig
from tiny import KINDS, Kind

# the names of attention and feed-forward outputs, written down from the printed models
STACKS = ("encoder", "decoder")
ATTENTION = {
    "t5": [f"{s}.block.{i}.layer.0.SelfAttention.o" for s in STACKS for i in (0, 1)],
    "bart": [f"model.{s}.layers.{i}.self_attn.out_proj" for s in STACKS for i in (0, 1)],
    "llama": [f"model.layers.{i}.self_attn.o_proj" for i in (0, 1)],
    "qwen2": [f"model.layers.{i}.self_attn.o_proj" for i in (0, 1)],
    "gemma3": [f"model.layers.{i}.self_attn.o_proj" for i in (0, 1)],
    "gpt2": [f"transformer.h.{i}.attn.c_proj" for i in (0, 1)],
    "opt": [f"model.decoder.layers.{i}.self_attn.out_proj" for i in (0, 1)],
    "bert": [f"bert.encoder.layer.{i}.attention.output.dense" for i in (0, 1)],
    "roberta": [f"roberta.encoder.layer.{i}.attention.output.dense" for i in (0, 1)],
}
FEED_FORWARD = {
    "t5": [f"encoder.block.{i}.layer.1.DenseReluDense.wo" for i in (0, 1)]
    + [f"decoder.block.{i}.layer.2.DenseReluDense.wo" for i in (0, 1)],
    "bart": [f"model.{s}.layers.{i}.fc2" for s in STACKS for i in (0, 1)],
    "llama": [f"model.layers.{i}.mlp.down_proj" for i in (0, 1)],
    "qwen2": [f"model.layers.{i}.mlp.down_proj" for i in (0, 1)],
    "gemma3": [f"model.layers.{i}.mlp.down_proj" for i in (0, 1)],
    "gpt2": [f"transformer.h.{i}.mlp.c_proj" for i in (0, 1)],
    "opt": [f"model.decoder.layers.{i}.fc2" for i in (0, 1)],
    "bert": [f"bert.encoder.layer.{i}.output.dense" for i in (0, 1)],
    "roberta": [f"roberta.encoder.layer.{i}.output.dense" for i in (0, 1)],
}
assert ATTENTION.keys() == FEED_FORWARD.keys() == KINDS.keys()


def config(kind: Kind, **options) -> BottleneckConfig:
    """A small bottleneck."""
    return BottleneckConfig(task_type=kind.task_type, **{"bottleneck_size": 4, **options})


def adapted(kind: Kind, *, adapter: str = "default", **options) -> PeftModel:
    """The kind with one adapter that changes the output."""
    model = get_peft_model(kind.model(), config(kind, **options), adapter_name=adapter)
    return trained(model, adapter)


def trained(model: PeftModel, adapter: str = "default", seed: int = 5) -> PeftModel:
    """Draw every tensor of an adapter large enough to be seen in the logits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, p in model.named_parameters():
            if "bottleneck_" in key and f".{adapter}." in key:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.5)
    return model.eval()


def tensors(model: PeftModel, adapter: str = "default") -> dict[str, torch.Tensor]:
    """The adapter's tensors: {"<module>.bottleneck_down.weight": ...}."""
    return {
        key.replace("base_model.model.", "").replace(f".{adapter}.", "."): p.detach()
        for key, p in model.named_parameters()
        if "bottleneck_" in key and f".{adapter}." in key
    }
