"""Run the app until it is told to stop; what was accepted by then is answered."""

from __future__ import annotations

import uvicorn

from peft_smop.predictor import Predictor
from peft_smop.serve.app import build_app
from peft_smop.serve.batching import Batcher
from peft_smop.serve.options import ServeOptions


def serve(
    predictor: Predictor,
    options: ServeOptions,
    *,
    host: str,
    port: int,
    batcher: type[Batcher] = Batcher,
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        predictor: with its adapters.
        options: the limits.
        host: the address to listen at.
        port: and its port.
        batcher: what makes the batches that requests share.
    """
    config = uvicorn.Config(
        build_app(predictor, options, batcher),
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=round(options.stop_s),
        timeout_keep_alive=75,  # seconds; less would close what clients are about to use
        h11_max_incomplete_event_size=65_536,
    )
    uvicorn.Server(config).run()
