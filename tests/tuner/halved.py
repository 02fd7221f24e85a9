"""Training passes over texts that are read once, and the same in one pass."""

import torch

from peft_smop.tuner import reading

CLOSE = {"rtol": 1e-3, "atol": 1e-6}
METHODS = {
    "single": {"routing": "single"},
    "smop": {"num_prompts": 3},
    "posterior": {"num_prompts": 3, "routing": "posterior", "judged": 1.0},
    "exact": {"num_prompts": 3, "routing": "posterior", "exact": True},
    "stochastic": {"num_prompts": 3, "routing": "stochastic"},
}


def trained(model, made, **more):
    """Loss and gradients of one training pass, and how many places the backbone computed."""
    model.train()
    model.zero_grad()
    computed = []
    handle = model.smop_layer.hooks.backbone.module.register_forward_hook(
        lambda module, args, kwargs, output: computed.append(
            (kwargs["inputs_embeds"].shape[:2].numel(), torch.is_grad_enabled())
        ),
        with_kwargs=True,
    )
    loss = model(**made, **more).loss
    handle.remove()
    loss.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), grads, computed


def in_one_pass(monkeypatch, model, made, **more):
    with monkeypatch.context() as patched:
        patched.setattr(reading, "_may_be_halved", lambda *_: False)
        return trained(model, made, **more)
