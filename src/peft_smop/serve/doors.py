"""What a request meets before any route: its size, its time, its token."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from peft_smop.serve.options import ServeOptions

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Doors:
    """Reads a request's body, within its limits, before the app sees it.

    Args:
        app: what lies behind.
        options: the limits.
        on_request: told of every request: its route as the app names it, status and seconds.
    """

    def __init__(
        self, app: App, options: ServeOptions, on_request: Callable[[str, int, float], None]
    ) -> None:
        self.app = app
        self.options = options
        self.on_request = on_request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it here."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.monotonic(), 500

        async def counted(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._let_in(scope, receive, counted)
        finally:
            route = str(getattr(scope.get("route"), "path", "other"))
            self.on_request(route, status, time.monotonic() - started)

    async def _let_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        if scope["path"].startswith("/v1") and not self._knows_token(headers):
            await _refuse(send, 401, "give the token: Authorization: Bearer TOKEN")
            return
        limit = self.options.body_bytes
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > limit:
            await _refuse(send, 413, f"the body has more than {limit} bytes")
            return
        body = bytearray()
        end = time.monotonic() + self.options.body_s
        while True:
            try:
                message = await asyncio.wait_for(receive(), max(0.0, end - time.monotonic()))
            except TimeoutError:
                await _refuse(send, 408, f"the body took more than {self.options.body_s:g} s")
                return
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if len(body) > limit:
                await _refuse(send, 413, f"the body has more than {limit} bytes")
                return
            if not message.get("more_body"):
                break
        whole: list[MutableMapping[str, Any]] = [
            {"type": "http.request", "body": bytes(body), "more_body": False}
        ]

        async def replay() -> MutableMapping[str, Any]:
            return whole.pop() if whole else await receive()

        await self.app(scope, replay, send)

    def _knows_token(self, headers: dict[bytes, bytes]) -> bool:
        if self.options.token is None:
            return True
        expected = b"Bearer " + self.options.token.encode()
        return hmac.compare_digest(headers.get(b"authorization", b""), expected)


async def _refuse(send: Send, status: int, sentence: str) -> None:
    content = json.dumps({"error": sentence}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        (b"connection", b"close"),  # what may still come of the body is not read
    ]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
