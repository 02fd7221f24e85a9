"""What is remembered between the hooks of one forward or generate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Literal, TypeVar

from jaxtyping import Float, Int
from torch import Tensor

from peft_smop.errors import PromptIgnoredError
from peft_smop.rows import Call, RowAdapters, current, end
from peft_smop.tuner.layer import SMoPLayer
from peft_smop.tuner.mixture import Decision
from peft_smop.tuner.splice import Layout
from peft_smop.tuner.texts import Halves, Texts

Result = TypeVar("Result")


@dataclass(eq=False)
class PromptCall(Call):
    """One forward, or one generate with all its forwards."""

    owner: SMoPLayer
    opened_by: Literal["caller", "model", "backbone"] = "caller"
    """Whose hook ends it."""
    routes: Int[Tensor, "b"] | None = None
    """Routes that this pass asks for, where it is one of several over the same rows."""
    draw: int = 0
    """Which draw of randomness this pass is; only the first has the routing's losses added."""
    decides_once: bool = False
    """Whether all passes share one decision, as those of a generate do."""
    reads: bool = False
    """Whether it is a backbone's pass over texts alone, without any prompt."""
    texts: Texts | None = None
    """What was read of the rows' texts, until the backbone's pass has taken it up."""
    posterior: Float[Tensor, "b k"] | None = None
    """Every row's, where its strategy judges."""
    prompts: Float[Tensor, "b l e"] | None = None
    """Every row's scaled prompt, once it is decided."""
    edges: Int[Tensor, "b"] | None = None
    """Where every row's text ended, once a prompt stands behind it."""
    rows: RowAdapters | None = None
    decisions: tuple[Decision, ...] = ()
    given: Mapping[str, Any] = field(default_factory=dict)
    """The model's arguments by name."""
    labels: Tensor | None = None
    """Of the pass, until the backbone's has taken them up."""
    layout: Layout | Halves | None = None
    states: Tensor | None = None
    """What the encoder inside the backbone gave, where a pooler needs to look back."""
    mask: Tensor | None = None
    """Which of the tokens are attended; None: all."""
    as_tuple: bool = False
    """Whether the caller of the backbone wants a tuple."""
    in_model: bool = False
    """Whether the model's own forward is running."""
    admitted: bool = False
    """Whether the hooks before a forward have just run, so that it may be computed."""
    seen: bool = False
    """Whether the backbone, or a decoder behind its states, was called."""

    def rows_of(self, count: int) -> RowAdapters | None:
        """Which adapter each of `count` rows follows; None: adapters are disabled or absent."""
        if self.owner.disable_adapters:
            return None
        active = self.owner.active_adapters
        return RowAdapters.of(active, self.adapter_names, count, repeated=self.repeats)

    @property
    def labels_given(self) -> Tensor | None:
        """The labels of the pass."""
        return self.given.get("labels")

    @property
    def says_something(self) -> bool:
        """Whether a pass within has to know of it."""
        return (
            self.adapter_names is not None
            or self.routes is not None
            or self.draw > 0
            or self.decides_once
        )

    def check_seen(self, module: object) -> None:
        """Refuse a pass that is over without the prompt.

        Raises:
            PromptIgnoredError: the backbone was never called.
        """
        if not self.seen:
            raise PromptIgnoredError(
                f"{type(module).__name__} finished a pass without calling its backbone, so the soft"
                " prompt was ignored; call the model through its forward or generate"
            )


def ends_if_interrupted(method: Callable[..., Result]) -> Callable[..., Result]:
    """Let a part of a pass end the call that a hook has opened for it, where no hook will.

    After an `Exception` PyTorch calls the hook that ends it; after an interrupt it calls none.
    """

    @wraps(method)
    def watched(self: Any, *args: Any, **kwargs: Any) -> Result:
        try:
            return method(self, *args, **kwargs)
        except Exception:
            raise
        except BaseException:
            call = current(self.layer, PromptCall)
            if call is not None and call.opened_by != "caller":
                end(call)
            raise

    return watched


class _Context(Call):
    """What surrounds passes."""

    @property
    def says_something(self) -> bool:
        """Always: that is what it is for."""
        return True


@dataclass(eq=False)
class Routed(_Context):
    """Routes that the passes within are asked for."""

    indices: Int[Tensor, "b"] | None = None
    """One for each row; -1: the row's own choice."""
    by_adapter: Mapping[str, int] = field(default_factory=dict)
    """One for all rows of an adapter, whatever `indices` say."""


@dataclass(eq=False)
class Apart(_Context):
    """A caller who adds the routing's own losses up by itself."""

    terms: dict[str, Tensor] = field(default_factory=dict)
    """What the last pass within asks for, by adapter, each a mean over its rows."""
    excess: Float[Tensor, "b"] | None = None
    """What every row's loss of the last pass, summed over its labels, is to have on top."""
