"""What can be tuned about the endpoint."""

from __future__ import annotations

from dataclasses import dataclass

from tokenspeed.options import option


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """`[server]`. `drain_seconds` bounds how long a stopping server finishes what is running."""

    host: str = option("127.0.0.1")
    port: int = option(8000, at_least=0, at_most=65535)  # 0: any free port, printed at start
    max_body_bytes: int = option(8 * 1024 * 1024, at_least=1024, at_most=1024**3)
    drain_seconds: float = option(30.0, at_least=0.0, at_most=3600.0)
    ping_seconds: float = option(15.0, at_least=1.0, at_most=300.0)  # silence before a keep-alive comment
    log_level: str = option("info", choices=("debug", "info", "warning", "error"))
