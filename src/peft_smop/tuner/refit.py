"""A router fitted once more to the prompts that training ended with.

While prompts are trained their router follows them, a step at a time and from a part of the rows.
When they stand still, what is left of the mixture's likelihood is convex in the router: every row
is put under every prompt, and W fitted to what came out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from peft_smop.errors import ConfigError
from peft_smop.tuner.deciding import router_inputs
from peft_smop.tuner.model import SMoPModel
from peft_smop.tuner.passes import label_counts
from peft_smop.tuner.posterior import Posterior

STRENGTHS = (500.0, 5.0, 15.0, 50.0, 150.0, 1500.0, 5000.0)
"""What the rows together count against ½ ∥W∥², W of mean embeddings of unit spread; the first where
nothing chooses."""
LEAST_SHARE = 1e-6
"""Share of a row below which it is not told to a prompt."""
STEPS = 2000
"""Most steps of the regression."""


@dataclass(frozen=True)
class JudgedRows:
    """Rows under every prompt of an adapter."""

    inputs: Float[Tensor, "n e"]
    """What the router reads of each: its mean embedding."""
    posterior: Float[Tensor, "n k"]
    """How a prompt's likelihood stands among all, q_j ∝ exp(-L_j); L tempered as in training."""

    @classmethod
    def of(
        cls,
        model: nn.Module,
        batches: Iterable[Mapping[str, Any]],
        *,
        on_batch: Callable[[int], None] | None = None,
    ) -> JudgedRows:
        """Put rows under every prompt of the active adapter, k passes without gradient.

        Args:
            model: with one active SMoP adapter that has a router.
            batches: as the model takes them, with labels.
            on_batch: called with the number of rows of each batch.

        Raises:
            ConfigError: there is no such adapter, or there are no rows, or a batch has no labels.
        """
        tuner, adapter = SMoPModel.of(model), SMoPModel.adapter_of(model)
        if tuner is None or adapter is None or adapter.router is None:
            raise ConfigError("only an adapter with a router can be fitted one")
        layer, name = tuner.smop_layer, tuner.active_adapters[0]
        strategy = adapter.strategy
        evidence = strategy.evidence if isinstance(strategy, Posterior) else Posterior().evidence
        predicts_next = layer.hooks.backbone.predicts_next
        inputs, shares = [], []
        for batch in batches:
            losses = tuner.prompt_losses(**batch)
            tokens = label_counts(batch["labels"], predicts_next=predicts_next).clamp(min=1)
            tempered = losses * (evidence / tokens).clamp(max=1)[:, None]
            shares.append((-tempered).softmax(dim=1).cpu())
            inputs.append(router_inputs(layer, name, batch).cpu())
            if on_batch is not None:
                on_batch(len(losses))
        if not inputs:
            raise ConfigError("there are no rows to fit a router to")
        return cls(torch.cat(inputs), torch.cat(shares))

    def keeping(self, prompts: Sequence[int]) -> JudgedRows:
        """The same where only some of the prompts are left."""
        left = self.posterior[:, list(prompts)]
        return JudgedRows(self.inputs, left / left.sum(dim=1, keepdim=True).clamp(min=1e-30))

    def router(self, strength: float = STRENGTHS[0]) -> Float[Tensor, "e k"]:
        """Find W that maximises strength · mean of Σ_j q_j log softmax(W x̄)_j - ½ ∥W s∥².

        s is the spread of the mean embeddings. Multinomial logistic regression without intercept.

        Raises:
            ConfigError: the strength is not above 0.
        """
        if not 0 < strength < float("inf"):
            raise ConfigError(f"strength={strength!r} must be a number above 0")
        from sklearn.linear_model import LogisticRegression

        known = self.posterior.isfinite().all(dim=1)
        x, q = self.inputs[known].double().numpy(), self.posterior[known].double().numpy()
        n, k = q.shape
        spread = float(x.std()) or 1.0
        rows, prompts = np.nonzero(q > LEAST_SHARE)
        matrix = np.zeros((x.shape[1], k))
        told = np.unique(prompts)
        if len(told) > 1:
            # of two prompts it has the difference of both columns alone, which weighs half
            weight = strength / n * (2 if len(told) == 2 else 1)
            model = LogisticRegression(C=weight, fit_intercept=False, max_iter=STEPS)
            model.fit(x[rows] / spread, prompts, sample_weight=q[rows, prompts])
            found = model.coef_.T / spread
            matrix[:, told] = found if len(told) > 2 else np.hstack([-found, found]) / 2
        return torch.from_numpy(matrix).float()


def fit_router(
    model: nn.Module, batches: Iterable[Mapping[str, Any]], *, strength: float = STRENGTHS[0]
) -> None:
    """Fit the active adapter's router once more, to its prompts as they are.

    Args:
        model: with one active SMoP adapter that has a router.
        batches: training rows, as the model takes them, with labels.
        strength: what they count against the penalty on W.

    Raises:
        ConfigError: there is no such adapter, or there are no rows, a batch has no labels, or the
            strength is not above 0.
    """
    judged = JudgedRows.of(model, batches)
    tuner = SMoPModel.of(model)
    assert tuner is not None
    tuner.set_router(judged.router(strength))
