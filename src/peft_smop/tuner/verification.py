"""On which kinds of models soft prompts were seen to be right: a table, not a guess.

`tools/verify_backbones.py` makes it by comparing tiny models of every type with a reference built
by hand.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from peft_smop.errors import ConfigError
from peft_smop.tuner.backbone import Backbone

TABLE = Path(__file__).with_name("verified.json")


@cache
def verified() -> dict[str, dict[str, Any]]:
    """By model type, then by kind of model, what came out."""
    return json.loads(TABLE.read_text(encoding="utf-8"))


def kinds_of(model: PreTrainedModel, backbone: Backbone) -> tuple[str, ...]:
    """The kinds in the table that speak for this model, the nearest first."""
    if type(model).__name__.endswith("ForSequenceClassification"):
        return ("SEQ_CLS",)
    if backbone.decoder is not None:
        return ("SEQ_2_SEQ_LM",)
    if backbone.predicts_next:
        return ("CAUSAL_LM",)
    # other heads read the states that these two do
    return ("FEATURE_EXTRACTION", "SEQ_CLS")


def check_verified(model: PreTrainedModel, backbone: Backbone) -> None:
    """Refuse a model on which prompts are not known to be right.

    Raises:
        ConfigError: with what is known, and the switch that overrules it.
    """
    model_type = model.config.model_type
    found = verified().get(model_type, {})
    known = [found[kind] for kind in kinds_of(model, backbone) if kind in found]
    if known and known[0]["outcome"] == "right":
        return
    said = f"prompts are not right on it: {known[0]['why']}" if known else "nobody has tried"
    if known and known[0]["outcome"] == "not built":
        said = f"it could not be tried ({known[0]['why']})"
    raise ConfigError(
        f"{type(model).__name__} (model type {model_type!r}): {said}; to adapt it all the same, and"
        " check for yourself, set unverified=True"
    )
