"""The server: its faces over HTTP, and the composition of everything behind them."""

from __future__ import annotations

from instainfer.config import Settings


def serve(settings: Settings) -> None:
    """Run until SIGINT or SIGTERM. Raises BadSettings or Unavailable before anything is started."""
    from instainfer.gateway.server import run  # the heavy imports wait until there is something to serve

    run(settings)
