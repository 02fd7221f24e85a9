"""The routes."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from peft_smop import __version__
from peft_smop.errors import CheckpointError, SMoPError
from peft_smop.predictor import Answer, Predictor
from peft_smop.serve import answering, openai
from peft_smop.serve.answering import ClientLeft, UnknownAdapter
from peft_smop.serve.batching import Batcher, Busy, Late
from peft_smop.serve.doors import Doors
from peft_smop.serve.metrics import Metrics
from peft_smop.serve.options import ServeOptions
from peft_smop.serve.schema import (
    ANSWERING,
    DOORS,
    GenerateRequest,
    LoadRequest,
    PredictRequest,
    refusals,
)

PAGE = Path(__file__).with_name("page.html")
CLIENT_LEFT = 499
"""As nginx has it; nobody reads it but the metrics."""


class Server:
    """What the routes share."""

    def __init__(self, predictor: Predictor, options: ServeOptions, batcher: type[Batcher]) -> None:
        self.options = options
        self.metrics = Metrics()
        self.batcher = batcher(predictor, options, self.metrics.batch)
        self.routed: dict[str, Counter[int]] = {}
        """How often each prompt of an adapter answered."""
        self.is_ready = False

    @property
    def predictor(self) -> Predictor:
        """The adapters."""
        return self.batcher.predictor

    def count(self, answers: list[Answer]) -> None:
        """Remember which prompts answered."""
        for answer in answers:
            if answer.prompt is not None:
                self.routed.setdefault(answer.adapter, Counter())[answer.prompt] += 1

    def described(self, name: str) -> dict[str, Any]:
        """What is told of an adapter."""
        one = self.predictor.adapters[name]
        task = one.task
        return {
            "name": name,
            "task": task.name,
            "template": task.template,
            "fields": list(task.fields),
            "labels": list(task.labels),
            "answered": {str(k): n for k, n in sorted(self.routed.get(name, {}).items())},
        }

    def place_of(self, source: str) -> Path:
        """An adapter's directory within the one that is allowed.

        Raises:
            HTTPException: there is none, or the source leads out of it.
        """
        allowed = self.options.directory
        if allowed is None:
            raise HTTPException(403, "no adapters are loaded while serving; see --adapters")
        allowed = allowed.resolve()
        try:
            place = (allowed / source).resolve()
        except (OSError, ValueError) as error:
            raise HTTPException(400, f"source {source!r} is no path") from error
        if not place.is_relative_to(allowed) or place == allowed or "\x00" in source:
            raise HTTPException(403, f"source {source!r} leads out of the directory of adapters")
        return place


def build_app(
    predictor: Predictor,
    options: ServeOptions | None = None,
    batcher: type[Batcher] = Batcher,
) -> FastAPI:
    """The app that answers with a predictor's adapters.

    Args:
        predictor: with its adapters; it belongs to the app from now on.
        options: the limits.
        batcher: what makes the batches that requests share.
    """
    server = Server(predictor, options or ServeOptions(), batcher)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        server.batcher.start()
        server.is_ready = True
        yield
        server.is_ready = False
        server.batcher.stop()

    app = FastAPI(
        title="peft-smop", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.state.server = server
    app.add_middleware(Doors, options=server.options, on_request=server.metrics.request)
    _answer_errors(app)
    _add_predicting(app, server)
    _add_adapters(app, server)
    _add_watching(app, server)
    openai.add(app, server.batcher)
    return app


def _answer_errors(app: FastAPI) -> None:
    def said(status: int, sentence: str, **headers: str) -> JSONResponse:
        return JSONResponse({"error": sentence}, status, headers=headers)

    @app.exception_handler(SMoPError)
    async def refused(request: Request, error: SMoPError) -> Response:
        return said(404 if isinstance(error, UnknownAdapter) else 400, str(error))

    @app.exception_handler(Busy)
    async def busy(request: Request, error: Busy) -> Response:
        return said(429, str(error), **{"Retry-After": f"{error.seconds:.0f}"})

    @app.exception_handler(Late)
    async def late(request: Request, error: Late) -> Response:
        return said(504, "the deadline passed before the answer was there")

    @app.exception_handler(ClientLeft)
    async def left(request: Request, error: ClientLeft) -> Response:
        return said(CLIENT_LEFT, "the client has left")

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return said(422, "the body is not JSON")
        if first["loc"] == ("body",) and "json" not in request.headers.get("content-type", ""):
            return said(422, "the body is not sent as JSON; give Content-Type: application/json")
        place = ".".join(str(part) for part in first["loc"][1:]) or "body"
        # what was sent is not sent back
        return said(422, f"{ascii(place)[1:-1]}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        if error.status_code == 405:  # as given it names one of several routes of a path
            headers["Allow"] = ", ".join(sorted(_methods_at(app, request)))
        return said(error.status_code, str(error.detail), **headers)


def _methods_at(app: FastAPI, request: Request) -> set[str]:
    """What may be asked at a request's path."""
    return {
        method
        for route in app.routes
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE
        for method in route.methods or ()
    }


def _add_predicting(app: FastAPI, server: Server) -> None:
    batcher = server.batcher

    @app.post("/v1/predict", responses=refusals(*ANSWERING))
    async def predict(asked: PredictRequest, request: Request) -> dict[str, Any]:
        """Label an input, or inputs across adapters; all requests share batches."""
        inputs = answering.inputs_of(asked, server.options.inputs)
        answers = await answering.predict(batcher, request, inputs, asked.timeout_ms)
        server.count(answers)
        return {"answers": [{"adapter": a.adapter, **a.as_dict()} for a in answers]}

    @app.post("/v1/routes", responses=refusals(*ANSWERING))
    async def routes(asked: PredictRequest, request: Request) -> dict[str, Any]:
        """Which prompt answers an input, and its share of the router's probability."""
        inputs = answering.inputs_of(asked, server.options.inputs)
        answers = await answering.predict(batcher, request, inputs, asked.timeout_ms)
        return {
            "routes": [
                {"adapter": a.adapter, "prompt": a.prompt, "share": a.prompt_probability}
                for a in answers
            ]
        }

    @app.post("/v1/generate", responses=refusals(*ANSWERING))
    async def generate(asked: GenerateRequest, request: Request) -> dict[str, Any]:
        """Write freely after an input, or inputs across adapters."""
        return {"texts": await answering.generate(batcher, request, asked)}


def _add_adapters(app: FastAPI, server: Server) -> None:
    @app.get("/v1/adapters", responses=refusals(*DOORS))
    async def adapters() -> dict[str, Any]:
        """The adapters that answer."""
        return {"adapters": [server.described(name) for name in server.predictor.adapters]}

    @app.post("/v1/adapters", status_code=201, responses=refusals(*DOORS, 400, 403, 409, 422))
    async def load(asked: LoadRequest) -> dict[str, Any]:
        """Load an adapter from the server's directory of adapters, while serving."""
        place = server.place_of(asked.source or asked.name)
        if asked.name in server.predictor.adapters:
            raise HTTPException(409, f"an adapter {asked.name!r} is loaded already")
        if len(server.predictor.adapters) >= server.options.adapters:
            raise HTTPException(409, f"{server.options.adapters} adapters are loaded, the most")
        try:
            await server.batcher.between(lambda: server.predictor.add(asked.name, place))
        except (CheckpointError, SMoPError) as error:
            raise HTTPException(400, str(error)) from error
        return server.described(asked.name)

    @app.delete("/v1/adapters/{name}", responses=refusals(*DOORS, 404, 409))
    async def unload(name: str) -> dict[str, Any]:
        """Forget an adapter; rows of it that wait are answered first or refused."""
        answering.known(server.batcher, name)
        if len(server.predictor.adapters) == 1:
            raise HTTPException(409, f"{name!r} is the only adapter")
        await server.batcher.between(lambda: server.predictor.remove(name))
        server.routed.pop(name, None)
        return {"unloaded": name}


def _add_watching(app: FastAPI, server: Server) -> None:
    @app.get("/healthz", responses={503: {"description": "it does not"}})
    async def healthz() -> Response:
        """Whether the server lives."""
        alive = server.batcher.is_working
        return JSONResponse({"alive": alive}, 200 if alive else 503)

    @app.get("/readyz", responses={503: {"description": "it does not"}})
    async def readyz() -> Response:
        """Whether it takes requests."""
        ready = server.is_ready and server.batcher.is_working and server.batcher.has_room
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Counters, as Prometheus reads them."""
        content = server.metrics.text(
            waiting=server.batcher.waiting, adapters=len(server.predictor.adapters)
        )
        return Response(content, media_type="text/plain; version=0.0.4")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> Response:
        headers = {
            "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline';"
            " script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'",
            "X-Content-Type-Options": "nosniff",
        }
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers=headers)
