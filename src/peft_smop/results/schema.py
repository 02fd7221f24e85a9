"""What a run leaves behind, as types: the one schema of `result.json`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from peft_smop.errors import CheckpointError
from peft_smop.results.files import read_object, write_json

FORMAT: Literal[2] = 2
"""Of `result.json`. The first had no hashes, so that nothing of it can be known to be as it was."""
SEAL = "sha256"


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TestScore(_Told):
    """The score on the test examples, with everything needed to read it."""

    __test__ = False  # no test of pytest's

    metric: str
    value: float
    low: float
    high: float
    majority: float
    examples: int
    points_per_example: float
    others: dict[str, float]
    loss: float
    load: tuple[float, ...]
    alarms: tuple[str, ...]


class Chosen(_Told):
    """The score by which the state was chosen."""

    score: float
    examples: int


class TrainingTold(_Told):
    """How the training went."""

    steps: int
    best_step: int
    stopped_early: bool
    learning_rate: float
    recipe: str = "paper"
    """What was meant where nothing was said; there was only the paper's at first."""
    dropout: bool | None = None
    """Whether the backbone's own was on, if it has any; None: an older version did not tell."""
    revived_prompts: int
    seconds: float
    resumed: bool
    packed: int
    continued_at: tuple[int, ...] = ()
    """The steps at which a finished run was trained on; its schedule began anew at each."""


class Parameters(_Told):
    """How many there are."""

    trainable: int
    allocated: int
    backbone: int
    percentage: float


class Points(_Told):
    """A difference in points, with its 95 % interval."""

    value: float
    low: float
    high: float


class RoutingWorth(_Told):
    """What the routing is worth; see `scoring.certify`."""

    part: str
    examples: int
    of: int
    worth: Points
    regret: Points
    verdict: str
    refitted: bool = False
    """Whether the router was fitted once more, to the finished prompts."""
    pruned: tuple[int, ...] = ()
    """The prompts, as they were counted in training, that were taken away before the test."""


class RunCost(_Told):
    """What training took; None: not measured."""

    seconds_per_100_steps: float | None
    peak_memory_mib: float | None
    training_gflops_per_example: float | None
    inference_gflops_per_example: float | None


class RunResult(_Told):
    """What a finished run came to: the content of `result.json`."""

    format: Literal[2] = FORMAT
    task: str
    model: str
    method: dict[str, Any]
    seed: int
    test: TestScore
    validation: Chosen
    training: TrainingTold
    parameters: Parameters
    split: dict[str, str]
    """Of each part, the SHA-256 of its rows."""
    truncated_test_inputs: int
    routing: RoutingWorth | None = None
    """None: there is no router, or nobody asked."""
    cost: RunCost
    environment: dict[str, str]
    files: dict[str, str] = Field(min_length=1)
    """The SHA-256 of every other file of the run, by its path within the run's directory."""

    def save(self, path: Path) -> None:
        """Write it, sealed with the hash of its own content.

        Raises:
            RunError: the place cannot be written to.
        """
        content = self.model_dump(mode="json")
        write_json(path, {**content, SEAL: _seal(content)})

    @classmethod
    def load(cls, path: Path) -> RunResult:
        """Read what `save` wrote, and believe nothing else.

        Raises:
            CheckpointError: it is missing, damaged, altered, or of a version without hashes.
        """
        content = read_object(path, "a run's result")
        seal = content.pop(SEAL, None)
        if content.get("format") != FORMAT or seal is None:
            raise CheckpointError(
                f"{path} has no hashes, so that nobody can know whether it is as it was written: an"
                " earlier version wrote it, or it was altered; run it again with --overwrite"
            )
        if seal != _seal(content):
            raise CheckpointError(
                f"{path} was altered since the run finished: its content is not that of its"
                f" {SEAL}; restore it, or run it again with --overwrite"
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            problem = error.errors()[0]
            field = ".".join(str(part) for part in problem["loc"])
            raise CheckpointError(
                f"{path} cannot be read as a run's result: {field}: {problem['msg']}"
            ) from error


def _seal(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
