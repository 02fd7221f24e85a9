"""What a run is: everything that decides its result, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from peft_smop.errors import ConfigError, unknown
from peft_smop.lab.store import write_whole
from peft_smop.methods import MethodSpec
from peft_smop.names import DEFAULT_MODEL
from peft_smop.training import TrainingOptions


class RunSpec(BaseModel):
    """One run of one method on one task with one seed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str = Field(description="a task's name, or the path of a task's YAML")
    data: Path | None = Field(default=None, description="the directory of the task's files")
    preset: str | None = Field(default=None, description="how the data are split")
    train_examples: int | None = Field(default=None, gt=0, description="use only this many")
    model: str = DEFAULT_MODEL
    method: MethodSpec = MethodSpec()
    training: TrainingOptions = TrainingOptions()
    seed: int = Field(default=0, ge=0)

    @classmethod
    def everywhere(cls) -> dict[str, str]:
        """Every option, and where it is set."""
        return {
            **dict.fromkeys(TrainingOptions.model_fields, "the training options"),
            **dict.fromkeys(
                MethodSpec.model_fields, "a method: after its name, such as smop:num_prompts=8"
            ),
            **dict.fromkeys(cls.model_fields, "the run: use the command's own option"),
        }

    def save(self, path: Path) -> None:
        """Write the spec as YAML."""
        text = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        write_whole(path, text)

    @classmethod
    def load(cls, path: Path) -> RunSpec:
        """Read a spec that `save` wrote, or one written by hand.

        Raises:
            ConfigError: it is not YAML, has an unknown key, or a value that cannot be.
        """
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            mark = getattr(error, "problem_mark", None)
            line = f", line {mark.line + 1}" if mark else ""
            raise ConfigError(f"{path}{line}: not YAML; expected a run's specification") from error
        if not isinstance(content, dict):
            raise ConfigError(f"{path}: expected keys such as task, model and method")
        return cls.of(content, place=str(path))

    @classmethod
    def of(cls, content: dict[str, Any], *, place: str = "options") -> RunSpec:
        """Validate a specification.

        Raises:
            ConfigError: with the field, its value, and what was expected.
        """
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            problem = error.errors()[0]
            field = ".".join(str(part) for part in problem["loc"])
            if problem["type"] == "extra_forbidden" and field.split(".")[-1] in cls.everywhere():
                raise ConfigError(
                    f"{place}: {field.split('.')[-1]} cannot be set here: it belongs to"
                    f" {cls.everywhere()[field.split('.')[-1]]}"
                ) from error
            if problem["type"] == "extra_forbidden":
                known = [*cls.model_fields, *MethodSpec.model_fields, *TrainingOptions.model_fields]
                raise ConfigError(
                    f"{place}: {unknown('key', field.split('.')[-1], known)}"
                ) from error
            raise ConfigError(
                f"{place}: {field}={problem['input']!r} cannot be: {problem['msg']}"
            ) from error
