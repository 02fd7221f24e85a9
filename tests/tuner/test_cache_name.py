"""A backbone may call its KV cache `cache`, as transformers do from 5.24 on."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import LlamaForCausalLM, LlamaModel
from transformers.utils import ModelOutput

from peft_smop import SMoPConfig
from peft_smop.errors import PromptIgnoredError
from tiny import KINDS, adapted, batch, decided


@dataclass
class Renamed(ModelOutput):
    last_hidden_state: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    cache: Any = None


class RenamedModel(LlamaModel):
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        cache=None,
        inputs_embeds=None,
        **kwargs,
    ):
        kwargs.pop("past_key_values", None)
        output = super().forward(
            input_ids, attention_mask, position_ids, cache, inputs_embeds, **kwargs
        )
        return Renamed(last_hidden_state=output[0], cache=output[1])


class RenamedLlama(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.model = RenamedModel(config)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, cache=None, **kwargs):
        output = self.model(input_ids, attention_mask, position_ids, cache, **kwargs)
        return Renamed(logits=self.lm_head(output.last_hidden_state), cache=output.cache)


@pytest.fixture
def models():
    """The renamed model and the one of transformers, with the same weights."""
    usual = adapted(KINDS["llama"])
    renamed = RenamedLlama(usual.get_base_model().config).eval()
    renamed = decided(get_peft_model(renamed, SMoPConfig(task_type="CAUSAL_LM")))
    renamed.load_state_dict(usual.state_dict())
    return renamed, usual


@pytest.mark.parametrize("old_name", [{}, {"past_key_values": None}])
@torch.no_grad()
def test_a_cache_by_another_name_holds_the_prompt_and_goes_on(models, old_name):
    renamed, usual = models
    made = batch(KINDS["llama"])
    made["attention_mask"][1] = 1  # a text that goes on has no padding on the right
    one, other = (model(**made, use_cache=True) for model in models)
    assert one.cache.get_seq_length() == 7 + 5
    assert torch.equal(one.logits, other.logits)
    more, mask = (
        torch.full((4, 1), 9),
        torch.nn.functional.pad(made["attention_mask"], (0, 1), value=1),
    )
    again = renamed(more, mask, cache=one.cache, use_cache=True, **old_name)
    expected = usual(more, mask, past_key_values=other[1], use_cache=True)
    assert again.cache.get_seq_length() == 7 + 5 + 1
    assert torch.equal(again.logits, expected.logits)


@torch.no_grad()
def test_a_cache_by_another_name_that_lacks_the_prompt_is_refused(models):
    made = batch(KINDS["llama"])
    with models[0].disable_adapter():
        bare = models[0](**made, use_cache=True).cache
    mask = torch.nn.functional.pad(made["attention_mask"], (0, 1), value=1)
    with pytest.raises(PromptIgnoredError, match="without the soft prompt"):
        models[0](made["input_ids"][:, :1], mask, cache=bare)
