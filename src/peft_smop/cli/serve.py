"""`smop serve`."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Annotated

import typer

from peft_smop.cli.named import check_path
from peft_smop.cli.options import BackboneOfTrained, TaskOfAdapter
from peft_smop.cli.terminal import Console
from peft_smop.errors import ConfigError, RunError

LIMITS = "Limits"
TOKEN = "SMOP_TOKEN"


def serve(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN_OR_ADAPTER...", help="Directories; NAME=DIRECTORY gives one a name."
        ),
    ],
    task: TaskOfAdapter = None,
    model: BackboneOfTrained = None,
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Its port.")] = 8000,
    adapters: Annotated[
        Path | None,
        typer.Option(help="A directory from which adapters may be loaded while serving."),
    ] = None,
    patience: Annotated[
        float,
        typer.Option(
            min=0, help="Milliseconds that a batch waits for rows.", rich_help_panel=LIMITS
        ),
    ] = 3.0,
    batch_rows: Annotated[
        int, typer.Option(min=1, help="Rows in a batch.", rich_help_panel=LIMITS)
    ] = 64,
    batch_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens in a batch.", rich_help_panel=LIMITS)
    ] = 16_384,
    queue_rows: Annotated[
        int, typer.Option(min=1, help="Rows that may wait; then 429.", rich_help_panel=LIMITS)
    ] = 2_048,
    deadline: Annotated[
        float,
        typer.Option(min=0.001, help="Seconds a request may wait.", rich_help_panel=LIMITS),
    ] = 30.0,
    stop: Annotated[
        float,
        typer.Option(
            min=0, help="Seconds for what was accepted, once told to stop.", rich_help_panel=LIMITS
        ),
    ] = 30.0,
) -> None:
    """Serve adapters of one backbone over HTTP; rows of all requests share batches.

    The environment's SMOP_TOKEN, where it is set, is asked of all under /v1 as a bearer token.

    Example: [bold]smop serve runs/tickets mood=runs/mood-s3/adapter[/bold]
    """
    named = _named(sources)
    for path in named.values():
        check_path(path)
    _check_address(host, port)
    if adapters is not None and not adapters.is_dir():
        raise ConfigError(f"--adapters {adapters} is not a directory")
    try:
        from peft_smop.serve import ServeOptions
        from peft_smop.serve import serve as serve_until_stopped
    except ImportError as error:
        raise ConfigError(f"serving needs {error.name}; pip install 'peft-smop[serve]'") from error
    from peft_smop.predictor import Predictor

    options = ServeOptions(
        patience_ms=patience,
        batch_rows=batch_rows,
        batch_tokens=batch_tokens,
        queue_rows=queue_rows,
        deadline_s=deadline,
        stop_s=stop,
        token=os.environ.get(TOKEN) or None,
        directory=adapters,
    )
    predictor = Predictor.load(named, task=task, model=model)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if host not in ("127.0.0.1", "localhost", "::1") and options.token is None:
        console.print(
            f"warning: {host} is open to others and no token is asked; set {TOKEN}", style="yellow"
        )
    count = "1 adapter" if len(named) == 1 else f"{len(named)} adapters"
    console.print(
        f"{count} ({', '.join(named)}) at http://{host}:{port}  (Ctrl-C stops)",
        markup=False,
    )
    serve_until_stopped(predictor, options, host=host, port=port)


def _check_address(host: str, port: int) -> None:
    """Refuse, before anything is loaded, an address that cannot be listened at.

    Raises:
        RunError: it is taken, forbidden or unknown.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise RunError(
            f"{host}:{port} cannot be listened at: {error.strerror or error}; give another --host"
            " or --port"
        ) from error


def _named(sources: list[str]) -> dict[str, Path]:
    """Directories by name; without one by their own, an adapter within a run by the run's.

    Raises:
        ConfigError: two have one name.
    """
    named: dict[str, Path] = {}
    for source in sources:
        name, equals, directory = source.partition("=")
        path = Path(directory if equals and name and not Path(source).exists() else source)
        if path == Path(source):
            whole = path.resolve()
            name = whole.parent.name if whole.name == "adapter" else whole.name
        if name in named:
            raise ConfigError(
                f"{named[name]} and {path} are both called {name}; give them names: NAME=DIRECTORY"
            )
        named[name] = path
    return named
