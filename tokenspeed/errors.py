"""The tree of errors. Each is told in one line and says the mend; nothing else is shown to a user.

`TokenSpeedError` splits by who has to act: the operator (`ConfigError`, `ModelError`), the client of a
request (`RequestError`) or nobody but us (`EngineError`: the step failed, the request did not).
"""

from __future__ import annotations

from collections.abc import Mapping


class TokenSpeedError(Exception):
    """Anything that TokenSpeed raises on purpose."""


class ConfigError(TokenSpeedError):
    """A configuration file or a `--set` is wrong."""


class ModelError(TokenSpeedError):
    """A checkpoint cannot be served: missing, broken, truncated, unpinned or of an unknown family."""


class RequestError(TokenSpeedError):
    """A request is wrong; `param` names the field as the client wrote it, `code` is machine-readable.

    `details` are figures of it that some client reads.
    """

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        details: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(message)
        self.param = param
        self.code = code
        self.details = details


class ContextLengthError(RequestError):
    """The prompt, or the prompt and the tokens asked for, exceed what can be served."""

    def __init__(
        self, message: str, *, param: str | None = None, details: Mapping[str, int] | None = None
    ) -> None:
        super().__init__(message, param=param, code="context_length_exceeded", details=details)


class NotFoundError(RequestError):
    """The request names something that is not served."""


class OverloadedError(RequestError):
    """There is no room for it now; the same request may be sent again after `retry_after` seconds."""

    def __init__(
        self, message: str, *, retry_after: float, param: str | None = None, code: str = "overloaded"
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.retry_after = retry_after


class DeadlineError(OverloadedError):
    """Its first token cannot be there by its deadline, by the cost model's prediction."""

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message, retry_after=retry_after, param="deadline", code="deadline_unreachable")


class EngineError(TokenSpeedError):
    """A step failed or the engine is stopping; the request it ended was not at fault."""


class DeviceLostError(EngineError):
    """The device can run no further step in this process, which should end and be started again."""


class EngineStoppedError(EngineError):
    """The engine takes no more requests: the server is shutting down."""
