"""Many adapters behind one server: is every answer right, how fast, and what an adapter takes.

python benchmarks/serving.py   # 50 adapters, 200 clients, 20,000 requests
python benchmarks/serving.py --compare-requests 2000   # and the other ways to serve

The adapters are drawn, not trained, on the embedded backbone; what they say is compared with what
each of them says alone, in this process. Client and servers share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles

import torch
from peft import get_peft_model

from peft_smop import Predictor, SMoPConfig
from peft_smop.methods import load_backbone
from peft_smop.predictor import Beside, save_beside
from peft_smop.tasks import CATALOGUE, load_task

TOLERANCE = 1e-3
"""Of a probability: rounding differs between batches."""


@dataclass
class Answered:
    """What became of the requests of one server."""

    seconds: float
    latencies_ms: list[float]
    right: int
    wrong: int
    lost: int

    def line(self, what: str, requests: int) -> str:
        """A row of the table."""
        cuts = quantiles(self.latencies_ms, n=100)
        return (
            f"| {what} | {requests} | {self.wrong} | {self.lost} | {requests / self.seconds:.0f} |"
            f" {cuts[49]:.0f} | {cuts[98]:.0f} |"
        )


def draw_adapters(folder: Path, count: int) -> dict[str, Path]:
    """Save adapters with prompts and routers by their number."""
    task = CATALOGUE["medley"].task
    loaded = load_backbone("embedded", labels=2, device=torch.device("cpu"))
    model = get_peft_model(loaded.model, SMoPConfig(task_type="SEQ_2_SEQ_LM"))
    found = {}
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator))
        path = folder / f"a{number}"
        model.save_pretrained(str(path))
        save_beside(path, Beside(task, "embedded", prompt_length=5), loaded.tokenizer)
        found[path.name] = path
    return found


def expected_of(adapters: dict[str, Path], texts: list[str]) -> dict[tuple[str, str], dict]:
    """What every adapter says alone."""
    said = {}
    for name, path in adapters.items():
        for text, answer in zip(texts, Predictor.load(path).predict(texts), strict=True):
            said[name, text] = answer.as_dict()
    return said


def start(adapters: dict[str, Path], *, own_batches: bool = False) -> tuple[subprocess.Popen, int]:
    """Start a server and wait until it is ready."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    arguments = [f"{name}={path}" for name, path in adapters.items()]
    way = "own" if own_batches else "shared"
    process = subprocess.Popen(
        [sys.executable, __file__, "--server", str(port), "--batches", way, *arguments],
        stderr=subprocess.DEVNULL,
    )
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process, port
        time.sleep(0.1)


def be_server(port: int, batches: str, sources: list[str]) -> None:
    """What a server's process does."""
    from peft_smop.serve import Batcher, ServeOptions, serve

    class OwnBatches(Batcher):
        """Batches of one adapter each, as servers with one active adapter have them."""

        def _gather(self) -> list:
            batch = super()._gather()
            own = [row for row in batch if row.adapter == batch[0].adapter]
            with self._changed:
                self._rows.extendleft(
                    row for row in reversed(batch) if row.adapter != batch[0].adapter
                )
            return own

    named = dict(source.split("=", 1) for source in sources)
    serve(
        Predictor.load(named),
        ServeOptions(),
        host="127.0.0.1",
        port=port,
        batcher=OwnBatches if batches == "own" else Batcher,
    )


async def client(port_of: dict[str, int], jobs: deque, expected: dict, found: Answered) -> None:
    """One client: a request after the other, on connections that are kept."""
    connections: dict[int, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
    while jobs:
        name, text = jobs.popleft()
        port = port_of[name]
        if port not in connections:
            connections[port] = await asyncio.open_connection("127.0.0.1", port)
        reader, writer = connections[port]
        content = json.dumps({"adapter": name, "text": text}).encode()
        begun = time.monotonic()
        writer.write(
            b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(content), content)
        )
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            body = json.loads(await reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            found.lost += 1
            connections.pop(port)
            continue
        found.latencies_ms.append(1000 * (time.monotonic() - begun))
        if "answers" not in body:
            found.lost += 1
        elif is_right(body["answers"][0], expected[name, text]):
            found.right += 1
        else:
            found.wrong += 1
    for _, writer in connections.values():
        writer.close()


def is_right(said: dict, expected: dict) -> bool:
    """Whether an answer is the adapter's own."""
    return said.get("prompt") == expected.get("prompt") and all(
        abs(said["probabilities"][label] - value) < TOLERANCE
        for label, value in expected["probabilities"].items()
    )


def load(port_of: dict[str, int], texts: list[str], expected: dict, args: argparse.Namespace,
         requests: int) -> Answered:  # fmt: skip
    """Send requests of random adapters and texts."""
    draw = random.Random(0)
    names = list(port_of)
    jobs = deque((draw.choice(names), draw.choice(texts)) for _ in range(requests))
    found = Answered(0, [], 0, 0, 0)

    async def all_clients() -> None:
        await asyncio.gather(*(client(port_of, jobs, expected, found) for _ in range(args.clients)))

    begun = time.monotonic()
    asyncio.run(all_clients())
    found.seconds = time.monotonic() - begun
    return found


def resident_mib(process: subprocess.Popen) -> float:
    """Memory of a process."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def stop(*processes: subprocess.Popen) -> None:
    """End servers as an operator would."""
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        process.wait()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", nargs="*")
    parser.add_argument("--server", type=int)
    parser.add_argument("--batches", default="shared")
    parser.add_argument("--adapters", type=int, default=50)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--texts", type=int, default=40)
    parser.add_argument("--compare-requests", type=int, default=0)
    parser.add_argument("--processes", type=int, default=6)
    args = parser.parse_args()
    if args.server:
        be_server(args.server, args.batches, args.sources)
        return
    texts = [example.text for example in load_task("medley").split.test[: args.texts]]
    with tempfile.TemporaryDirectory() as folder:
        adapters = draw_adapters(Path(folder), args.adapters)
        expected = expected_of(adapters, texts)
        print(f"{args.adapters} adapters, {args.clients} clients, {os.cpu_count()} cores")
        print("| server | requests | wrong | lost | requests/s | p50 ms | p99 ms |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        one = dict(list(adapters.items())[:1])
        process, port = start(one)
        load(dict.fromkeys(one, port), texts, expected, args, 100)
        alone = resident_mib(process)
        stop(process)
        process, port = start(adapters)
        load(dict.fromkeys(one, port), texts, expected, args, 100)
        grown = (resident_mib(process) - alone) / max(1, args.adapters - 1)
        found = load(dict.fromkeys(adapters, port), texts, expected, args, args.requests)
        stop(process)
        print(found.line("shared batches", args.requests), flush=True)
        if args.compare_requests:
            compare(adapters, texts, expected, args)
        print(f"\nmemory of a server with one adapter: {alone:.0f} MiB; of each further adapter:"
              f" {grown:.2f} MiB")  # fmt: skip
        if found.wrong or found.lost:
            sys.exit(1)


def compare(adapters: dict[str, Path], texts: list[str], expected: dict, args: argparse.Namespace
            ) -> None:  # fmt: skip
    """The other ways to serve: batches of one adapter each, and a process for each adapter."""
    few = dict(list(adapters.items())[: args.processes])
    count = args.compare_requests
    for what, some, own in (
        ("shared batches", adapters, False),
        ("batches of one adapter", adapters, True),
        (f"shared batches, {len(few)} adapters", few, False),
    ):
        process, port = start(some, own_batches=own)
        found = load(dict.fromkeys(some, port), texts, expected, args, count)
        stop(process)
        print(found.line(what, count), flush=True)
    started = {name: start({name: path}) for name, path in few.items()}
    ports = {name: port for name, (_, port) in started.items()}
    found = load(ports, texts, expected, args, count)
    print(found.line(f"{len(few)} processes of one adapter", count), flush=True)
    stop(*(process for process, _ in started.values()))


if __name__ == "__main__":
    main()
