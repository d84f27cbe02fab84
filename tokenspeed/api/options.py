"""What can be tuned about the endpoint, and who may use it."""

from __future__ import annotations

from dataclasses import dataclass, field

from tokenspeed.generation.request import LEAST_URGENT, MOST_URGENT
from tokenspeed.options import option


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """`[server]`. `drain_seconds` bounds how long a stopping server finishes what is running."""

    host: str = option("127.0.0.1")
    port: int = option(8000, at_least=0, at_most=65535)  # 0: any free port, printed at start
    max_body_bytes: int = option(8 * 1024 * 1024, at_least=1024, at_most=1024**3)
    drain_seconds: float = option(30.0, at_least=0.0, at_most=3600.0)
    ping_seconds: float = option(15.0, at_least=1.0, at_most=300.0)  # silence before a keep-alive comment
    cors_origins: list[str] = option([])  # pages that may use it: "https://host:port", or "*"
    allowed_hosts: list[str] = option([])  # names beside localhost under which a loopback address is reached
    log_level: str = option("info", choices=("debug", "info", "warning", "error"))


@dataclass(frozen=True, slots=True)
class ResponsesOptions:
    """`[responses]`. What is kept of responses that clients come back to; age counts from the last use."""

    store: bool = option(True)
    store_path: str = option("")  # empty: in the user's state directory
    max_stored_mib: int = option(256, at_least=1, at_most=1_048_576)
    max_age_hours: float = option(720.0, at_least=0.01, at_most=87_600.0)


@dataclass(frozen=True, slots=True)
class KeyOptions:
    """`[keys.NAME]`: an API key, the class of its requests, its share of the device and its caps.

    `secret` is what clients send; like every field that is out of the repr it is told in no error and no log.
    `max_running` and `max_waiting` count sequences; 0 leaves them to the server's own bounds.
    """

    secret: str = field(default="", repr=False)  # required: "" is refused
    priority: int = option(0, at_least=MOST_URGENT, at_most=LEAST_URGENT)
    share: float = option(1.0, at_least=0.001, at_most=1000.0)
    max_running: int = option(0, at_least=0, at_most=4096)
    max_waiting: int = option(0, at_least=0, at_most=1_000_000)
