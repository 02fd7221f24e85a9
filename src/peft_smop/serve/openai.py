"""Routes that OpenAI's clients speak to; the adapter is the model's name."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

from fastapi import FastAPI, Request, Response
from jinja2 import TemplateError
from starlette.exceptions import HTTPException

from peft_smop.errors import ConfigError
from peft_smop.serve import answering
from peft_smop.serve.batching import Batcher
from peft_smop.serve.schema import ANSWERING, DOORS, ChatRequest, CompletionRequest, refusals

WRITTEN: dict[int | str, dict[str, Any]] = {
    200: {"description": "A text, or events", "content": {"text/event-stream": {}}},
    **refusals(*ANSWERING),
}


def add(app: FastAPI, batcher: Batcher) -> None:
    """Add the routes to an app."""

    @app.get("/v1/models", responses=refusals(*DOORS))
    async def models() -> dict[str, Any]:
        """The adapters, as OpenAI lists models."""
        names = batcher.predictor.adapters
        data = [{"id": name, "object": "model", "owned_by": "peft-smop"} for name in names]
        return {"object": "list", "data": data}

    @app.post("/v1/completions", response_model=None, responses=WRITTEN)
    async def completions(asked: CompletionRequest, request: Request) -> dict[str, Any] | Response:
        """Continue a text, or several; no template is put around them."""
        prompts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
        texts = await _written(batcher, request, asked, prompts)
        choices = [
            {"index": i, "text": text, "logprobs": None, "finish_reason": reason}
            for i, (text, reason) in enumerate(texts)
        ]
        envelope = _envelope("text_completion", "cmpl", asked.model, choices)
        return _events([envelope]) if asked.stream else envelope

    @app.post("/v1/chat/completions", response_model=None, responses=WRITTEN)
    async def chat(asked: ChatRequest, request: Request) -> dict[str, Any] | Response:
        """Answer a chat, written by the backbone's chat template or, without one, in lines."""
        ((text, reason),) = await _written(batcher, request, asked, [_chat(batcher, asked)])
        message = {"role": "assistant", "content": text}
        if asked.stream:
            parts: list[dict[str, Any]] = [
                {"index": 0, "delta": message, "finish_reason": None},
                {"index": 0, "delta": {}, "finish_reason": reason},
            ]
            first = _envelope("chat.completion.chunk", "chatcmpl", asked.model, [])
            return _events([{**first, "choices": [part]} for part in parts])
        choices = [{"index": 0, "message": message, "finish_reason": reason}]
        return _envelope("chat.completion", "chatcmpl", asked.model, choices)


async def _written(
    batcher: Batcher, request: Request, asked: Any, prompts: list[str]
) -> list[tuple[str, str]]:
    if not 0 < len(prompts) <= batcher.options.inputs:
        raise ConfigError(f"{len(prompts)} prompts; expected 1 to {batcher.options.inputs}")
    if batcher.predictor.kind == "SEQ_CLS":
        raise HTTPException(400, "the backbone is an encoder, which writes nothing; /v1/predict")
    texts = await answering.write(
        batcher,
        request,
        [(asked.model, prompt) for prompt in prompts],
        tokens=asked.max_tokens,
        temperature=asked.temperature,
        raw=True,
    )
    stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    return [_stopped(text, [stop for stop in stops if stop]) for text in texts]


def _stopped(text: str, stops: list[str]) -> tuple[str, str]:
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return (text[: min(places)], "stop") if places else (text, "length")


def _chat(batcher: Batcher, asked: ChatRequest) -> str:
    messages = [message.model_dump() for message in asked.messages]
    tokenizer = batcher.predictor.tokenizer
    if getattr(tokenizer, "chat_template", None):
        try:
            return str(
                tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            )
        except TemplateError as error:  # such as of a role that the backbone does not know
            raise ConfigError(f"messages: the backbone's template refuses them: {error}") from error
    return "\n".join(message["content"] for message in messages)


def _events(chunks: list[dict[str, Any]]) -> Response:
    """Server-sent events, as clients read them that asked for a stream.

    A text comes in one piece, when it is whole: rows of all requests are written in shared passes.
    """
    lines = [f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n" for chunk in chunks]
    return Response("".join(lines) + "data: [DONE]\n\n", media_type="text/event-stream")


def _envelope(kind: str, prefix: str, model: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "choices": choices,
    }
