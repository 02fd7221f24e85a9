"""Which formulation a model has, by its kind."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from peft_smop.errors import ConfigError
from peft_smop.scoring.classification import Classification
from peft_smop.scoring.continuation import Continuation
from peft_smop.scoring.formulation import Formulation
from peft_smop.scoring.text_to_text import TextToText
from peft_smop.tasks import Task

TENSOR_CORE_MULTIPLE = 8
"""Rows of 16-bit numbers that are this long are multiplied and masked without a detour."""
LEAST_TEXT = 4
"""Tokens of text below which an input says nothing."""

FORMULATIONS: dict[str, type[Formulation]] = {
    kind.task_type: kind for kind in (TextToText, Continuation, Classification)
}


def formulate(
    task: Task,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    task_type: str,
    max_length: int,
    prompt_length: int = 0,
) -> Formulation:
    """Choose the formulation for a model.

    Args:
        task: the task.
        model: the backbone, for the number of positions it has.
        tokenizer: its tokenizer.
        task_type: PEFT's name for the kind of model.
        max_length: the longest input in tokens.
        prompt_length: positions that a soft prompt takes from a backbone which has a fixed number.

    Raises:
        ConfigError: there is no room for a text, or the verbalizers cannot be told apart.
    """
    if task_type == "SEQ_2_SEQ_LM" and model.config.decoder_start_token_id is None:
        raise ConfigError(
            f"{type(model).__name__} says no decoder_start_token_id; set it in its config.json"
        )
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    room = max_length if positions is None else min(max_length, positions - prompt_length - 2)
    formulation = FORMULATIONS[task_type](task, tokenizer, room)
    formulation.prompt_length = prompt_length
    if model.device.type == "cuda" and model.dtype in (torch.bfloat16, torch.float16):
        formulation.multiple = TENSOR_CORE_MULTIPLE
    if room - formulation.overhead < LEAST_TEXT:
        if room < max_length:
            raise ConfigError(
                f"a prompt of {prompt_length} virtual tokens leaves {max(room, 0)} of the model's"
                f" {positions} positions; lower num_virtual_tokens"
            )
        raise ConfigError(
            f"max_length={max_length} leaves no room for a text: of every input"
            f" {formulation.overhead} {'is' if formulation.overhead == 1 else 'are'} no text's,"
            f" and a text needs {LEAST_TEXT}; raise it to {formulation.overhead + LEAST_TEXT}"
        )
    return formulation
