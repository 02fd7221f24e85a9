"""What is said of one input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """A label, how sure the model is, and which prompt answered."""

    label: str
    probabilities: dict[str, float]
    """Of every label; they sum to one."""
    prompt: int | None
    """The prompt that the router chose; None for adapters that choose none."""
    prompt_probability: float | None
    """The router's probability of that prompt."""
    adapter: str
    truncated: bool = False
    """Whether the input was longer than the adapter's longest and was cut."""

    @property
    def confidence(self) -> float:
        """The probability of the label."""
        return self.probabilities[self.label]

    def as_dict(self) -> dict[str, Any]:
        """For JSON; what there is none of is left out."""
        said: dict[str, Any] = {"prediction": self.label, "probabilities": self.probabilities}
        if self.prompt is not None:
            said |= {"prompt": self.prompt, "prompt_probability": self.prompt_probability}
        if self.truncated:
            said["truncated"] = True
        return said
