"""What requests hold."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Milliseconds = Annotated[int, Field(gt=0, le=3_600_000)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Input(_Strict):
    """One input, and whose it is."""

    adapter: Name | None = Field(default=None, description="not needed where there is only one")
    text: str | None = Field(
        default=None, description="the template's only field, or the finished text"
    )
    fields: dict[str, Any] | None = Field(default=None, description="the template's, by name")


class PredictRequest(Input):
    """An input, or several in `inputs`, each with its own adapter."""

    inputs: list[Input] | None = None
    timeout_ms: Milliseconds | None = None


class GenerateRequest(PredictRequest):
    """What is written after the inputs."""

    max_new_tokens: Annotated[int, Field(gt=0)] = 32
    temperature: Annotated[float, Field(ge=0, le=10)] = 0.0


class LoadRequest(_Strict):
    """An adapter to load from the server's directory of adapters."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^/]+$")]
    source: Name | None = Field(default=None, description="its directory there; the name's")


class _OpenAI(BaseModel):
    """Keys that we do not know are passed over, as clients send many."""

    model: Name
    max_tokens: Annotated[int, Field(gt=0)] = 16
    temperature: Annotated[float, Field(ge=0, le=10)] = 0.0
    stop: str | list[str] | None = None
    n: Annotated[int, Field(ge=1, le=1)] = 1
    stream: bool = False


class CompletionRequest(_OpenAI):
    """`/v1/completions`."""

    prompt: str | list[str]


class Message(BaseModel):
    """One message of a chat."""

    role: Annotated[str, StringConstraints(max_length=50)]
    content: str


class ChatRequest(_OpenAI):
    """`/v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]


class Refusal(BaseModel):
    """What was wrong, in one sentence."""

    error: str


_REFUSALS = {
    400: "the request cannot be answered",
    401: "the token is missing or wrong",
    403: "not from the server's directory of adapters",
    404: "there is no such adapter",
    408: "the body came too slowly",
    409: "not with the adapters that are loaded",
    413: "the body is too large",
    422: "the body is not what is expected",
    429: "too many rows wait; Retry-After says how long to wait",
    504: "the deadline passed",
}
DOORS = (401, 408, 413)
"""With which any request under /v1 may be refused."""
ANSWERING = (*DOORS, 400, 404, 422, 429, 504)
"""With which a request for answers may be refused."""


def refusals(*codes: int) -> dict[int | str, dict[str, Any]]:
    """The refusals of a route, as OpenAPI lists them."""
    return {code: {"model": Refusal, "description": _REFUSALS[code]} for code in sorted(codes)}
