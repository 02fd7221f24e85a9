"""What a run is: everything that decides its result, and nothing else."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from peft_smop.errors import ConfigError, shortened, unknown
from peft_smop.methods import MethodSpec, method_of
from peft_smop.names import DEFAULT_MODEL, Rate
from peft_smop.plain_yaml import PlainYamlError, read_yaml
from peft_smop.results import read_text, write_whole
from peft_smop.tasks.reading import shown
from peft_smop.training import TrainingOptions

HISTORY = {"continued_at", "loaded_in", "pooled"}
"""Fields that say how a run came to be, and not what was asked for."""


class RunSpec(BaseModel):
    """One run of one method on one task with one seed. Its paths are absolute."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str = Field(description="a task's name, or the path of a task's YAML")
    data: Path | None = Field(default=None, description="the directory of the task's files")
    preset: str | None = Field(default=None, description="how the data are split")
    train_examples: int | None = Field(default=None, gt=0, description="use only this many")
    model: str = DEFAULT_MODEL
    method: MethodSpec = MethodSpec()
    training: TrainingOptions = TrainingOptions()
    seed: int = Field(default=0, ge=0)
    continued_at: tuple[int, ...] = Field(
        default=(), description="steps at which a finished run was trained on"
    )
    loaded_in: Literal["fp32", "bf16"] | None = Field(
        default=None, description="the backbone's precision, once it was loaded"
    )
    pooled: Literal["own", "mean"] | None = Field(
        default=None, description="what its classification head reads, once it was loaded"
    )

    @property
    def learning_rate(self) -> Rate:
        """The rate that was given, or the first of the method's by the recipe."""
        return self.training.learning_rate or method_of(self.method).rates(self.training.recipe)[0]

    @property
    def dropout(self) -> bool:
        """Whether the backbone's own is on in training, as was asked for or by the recipe."""
        asked = self.training.dropout
        return method_of(self.method).drops(self.training.recipe) if asked is None else asked

    def resolved(self) -> RunSpec:
        """With what its recipe means by options that were not said, to be kept: recipes change."""
        meant = {"learning_rate": self.learning_rate, "dropout": self.dropout}
        return self.model_copy(update={"training": self.training.model_copy(update=meant)})

    @property
    def precision(self) -> str:
        """Of the backbone; bf16 weights would round most updates of full fine-tuning away."""
        asked = self.training.precision
        return "fp32" if self.method.name == "full" and asked == "auto" else asked

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

    @property
    def asked(self) -> str:
        """The options by which commands take the same task and backbone."""
        said = {"--task": self.task, "--model": self.model, "--data": self.data}
        return " ".join(f"{k} {shlex.quote(str(v))}" for k, v in said.items() if v is not None)

    def save(self, path: Path) -> None:
        """Write the spec as YAML."""
        text = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        write_whole(path, text)

    @classmethod
    def load(cls, path: Path) -> RunSpec:
        """Read a spec that `save` wrote, or one written by hand.

        Raises:
            ConfigError: it is not YAML, has an unknown key, or a value that cannot be.
            CheckpointError: it cannot be read at all.
        """
        return cls.of(read_mapping(path), place=str(path), base=path.parent)

    @classmethod
    def begun(cls, path: Path) -> RunSpec:
        """Read the spec of a run that was begun, perhaps by an earlier version.

        Raises:
            SMoPError: as `load`.
        """
        spec = cls.load(path)
        # those that do not say what a head read knew one thing
        return spec.model_copy(update={"pooled": spec.pooled or "own"})

    @classmethod
    def of(
        cls, content: dict[str, Any], *, place: str = "options", base: Path | None = None
    ) -> RunSpec:
        """Validate a specification.

        Args:
            content: by the names of the fields.
            place: where it stands, for people.
            base: the directory that its paths are relative to; by default the current one.

        Raises:
            ConfigError: with the field, its value, and what was expected.
        """
        try:
            return cls.model_validate(_absolute(content, base or Path.cwd()))
        except ValidationError as error:
            raise _refused(error, place) from error


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a file of keys and values.

    Raises:
        ConfigError: it is not YAML, or holds something else.
        CheckpointError: it cannot be read at all.
    """
    try:
        content = read_yaml(read_text(path, "a specification"))
    except PlainYamlError as error:
        line = f", line {error.line}" if error.line else ""
        raise ConfigError(f"{path}{line}: {error}; expected a run's specification") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected keys such as task, model and method")
    return content


def _absolute(content: dict[str, Any], base: Path) -> dict[str, Any]:
    """The content with its paths from the root on, so that it means the same from everywhere."""

    def whole(path: Any) -> str:
        return str((base / Path(path).expanduser()).resolve())

    found = dict(content)
    task, data, model = (content.get(key) for key in ("task", "data", "model"))
    if isinstance(task, str | Path) and Path(task).suffix.lower() in (".yaml", ".yml"):
        found["task"] = whole(task)
    if isinstance(data, str | Path):
        found["data"] = whole(data)
    # a model's name may look like a path
    if isinstance(model, str | Path) and (base / Path(model).expanduser()).exists():
        found["model"] = whole(model)
    method = content.get("method")
    if isinstance(method, dict) and isinstance(method.get("init_adapter"), str | Path):
        found["method"] = {**method, "init_adapter": whole(method["init_adapter"])}
    return found


def _refused(error: ValidationError, place: str) -> ConfigError:
    """What is wrong with a specification, in one sentence."""
    problem = error.errors()[0]
    # pydantic's also name the kind that a value of several kinds was tried as
    field = ".".join(str(part) for part in problem["loc"] if part not in ("float", "str"))
    key = field.split(".")[-1]
    if problem["type"] == "extra_forbidden" and key in RunSpec.everywhere():
        return ConfigError(
            f"{place}: {key} cannot be set here: it belongs to {RunSpec.everywhere()[key]}"
        )
    if problem["type"] == "extra_forbidden":
        known = [
            *RunSpec.model_fields,
            *MethodSpec.model_fields,
            *TrainingOptions.model_fields,
        ]
        return ConfigError(f"{place}: {unknown('key', key, known)}")
    if problem["type"] == "missing":
        return ConfigError(f"{place}: no key {key!r}; expected it beside the others")
    said = problem["msg"].removeprefix("Value error, ")  # pydantic's, before a check of ours
    what = f"{place}: {field}={shown(problem['input'])}"
    expected = said.removeprefix("Input should be ")
    if problem["type"] == "path_type":
        expected = "a path"
    verb = "cannot be:" if expected == said else "must be"
    return ConfigError(f"{what} {verb} {shortened(expected)}")
