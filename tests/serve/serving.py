"""A server of five adapters in this process, on a port of its own."""

import asyncio
import json
import socket
import threading
import time
from contextlib import contextmanager, suppress

import uvicorn

from peft_smop import Predictor
from peft_smop.serve import ServeOptions, build_app


@contextmanager
def running(adapters, **options):
    """Serve, and yield (address, the app's server)."""
    app = build_app(Predictor.load(adapters), ServeOptions(**options))
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=20)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [held]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield held.getsockname(), app.state.server, server
    finally:
        server.should_exit = True
        thread.join()
        held.close()


async def ask(address, method, path, body=None, *, headers=(), raw=None):
    """One request on a connection of its own -> (status, headers, content)."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        content = raw if raw is not None else b"" if body is None else json.dumps(body).encode()
        head = [
            f"{method} {path} HTTP/1.1", "host: x", "connection: close",
            f"content-length: {len(content)}", "content-type: application/json", *headers,
        ]  # fmt: skip
        writer.write("\r\n".join([*head, "", ""]).encode() + content)
        await writer.drain()
        answer = await reader.read()
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
    head, _, content = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    named = dict(line.lower().split(": ", 1) for line in lines[1:])
    status = int(lines[0].split()[1]) if lines[0] else 0
    if "json" in named.get("content-type", ""):
        content = json.loads(content)
    return status, named, content


def one(address, *arguments, **options):
    """The same, from code that does not wait."""
    return asyncio.run(ask(address, *arguments, **options))


@contextmanager
def kept_busy(server):
    """The thread that computes does nothing but wait, until the block's gate is opened."""
    gate = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(server.batcher.between(gate.wait)))
    thread.start()
    try:
        yield gate
    finally:
        gate.set()
        thread.join()
