"""Adapters without a model: mean embeddings in, soft prompts out."""

import torch

from peft_smop.rows import RowAdapters
from peft_smop.tuner.deciding import row_state
from peft_smop.tuner.layer import Adapter, SMoPLayer
from peft_smop.tuner.mixture import soft_prompts
from peft_smop.tuner.routes import Routes


class ByHand(SMoPLayer):
    """Some adapters, and the pass that a backbone's hooks would make of them."""

    def add_adapter(self, name, *, prompts, router, strategy, seed, **options):
        self.smop_adapters[name] = Adapter(prompts, router, strategy=strategy, seed=seed, **options)

    def soft_prompts(self, mean, rows: RowAdapters, content=None, draw=0):
        """The rows' prompts; by default every row says something else, its own place."""
        content = torch.arange(rows.count) if content is None else content
        own = [self[name] for name in rows.names]
        state = row_state(own, rows, lambda: content, training=self.training, draw=draw)
        made, self.decisions = soft_prompts(own, rows, mean, state)
        self.last = (rows, tuple(decision.detached() for decision in self.decisions))
        return made

    def last_routes(self) -> Routes:
        return Routes.of(*self.last)

    def end_step(self):
        """As an optimizer's step counts it."""
        for name in self:
            self[name].steps.add_(1)
