"""From an adapter's directory to answers: the one face for commands, serving and users."""

from peft_smop.predictor.answer import Answer
from peft_smop.predictor.beside import Beside, located, save_beside
from peft_smop.predictor.card import model_card
from peft_smop.predictor.inputs import Input, example_of
from peft_smop.predictor.predictor import Loaded, Predictor

__all__ = [
    "Answer",
    "Beside",
    "Input",
    "Loaded",
    "Predictor",
    "example_of",
    "located",
    "model_card",
    "save_beside",
]
