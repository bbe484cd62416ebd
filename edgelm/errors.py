"""Every error that edgelm raises on purpose, in one tree.

    EdgeLMError                     catch this one to catch them all
    ├── ModelFileError              the file is missing, cut short, malformed or contradicts itself
    ├── UnsupportedModelError       a sound file, but an architecture, format or tokenizer edgelm does not run
    ├── TemplateError               the chat template is missing, unsafe, too slow or fails
    ├── InvalidRequestError         an argument has a value that makes no sense (also a ValueError)
    │   ├── ContextOverflowError    more tokens than the context holds
    │   └── UnknownModelError       the server has no model of this name
    ├── InsufficientMemoryError     the model, or its KV cache, does not fit the memory that is free
    ├── BackendUnavailableError     the engine asked for is not installed or cannot run here
    ├── DownloadError               a model could not be fetched, verified or stored
    ├── MeterError                  a power meter cannot be read, or what it says makes no sense
    ├── RecordError                 a record, or the file of it, is missing, malformed, of a version not read, or not writable
    ├── BudgetExceededError         a call to a cloud endpoint might cost more than its budget allows
    ├── MeasurementError            a benchmark could not be measured: an engine ended half way, a server does not answer
    ├── MissingPackageError         an optional package that the command needs is not installed
    ├── EgressRefusedError          something would have left this device without permission
    ├── CloudError                  a cloud endpoint could not be reached, refused, or broke off
    ├── RedactionError              a request could not be cleared of personal data, so it must not leave the device
    ├── BusyError                   too many requests wait already
    ├── DeadlineError               a request took longer than its timeout allows
    └── ClosedError                 the model was closed before the call

Every message says what was wrong, where, and what to do about it.
"""

from __future__ import annotations

from datetime import datetime


class EdgeLMError(Exception):
    """Base of all errors raised by edgelm."""


class ModelFileError(EdgeLMError):
    """A model file is missing, truncated, malformed or self-contradictory."""


class UnsupportedModelError(EdgeLMError):
    """The file is sound, but asks for something edgelm does not implement."""


class TemplateError(EdgeLMError):
    """A chat template is missing, unsafe, exceeds its limits, or raised an error."""


class InvalidRequestError(EdgeLMError, ValueError):
    """An argument has a value that makes no sense."""


class ContextOverflowError(InvalidRequestError):
    """The tokens do not fit the context.

    Attributes:
        n_prompt_tokens: tokens that were asked for.
        n_ctx: tokens that the context holds.
    """

    def __init__(self, n_prompt_tokens: int, n_ctx: int, advice: str = "") -> None:
        self.n_prompt_tokens = n_prompt_tokens
        self.n_ctx = n_ctx
        text = f"the prompt has {n_prompt_tokens} tokens, but the context holds {n_ctx}"
        super().__init__(f"{text}; {advice or 'shorten the prompt or open the model with a larger n_ctx'}")


class UnknownModelError(InvalidRequestError):
    """There is no model of this name."""


class InsufficientMemoryError(EdgeLMError):
    """The memory that is free does not suffice."""


class BackendUnavailableError(EdgeLMError):
    """An engine is not installed, or cannot run on this machine."""


class DownloadError(EdgeLMError):
    """A model could not be fetched, verified or stored."""


class MeterError(EdgeLMError):
    """A power meter cannot be read, or its readings make no sense."""


class RecordError(EdgeLMError):
    """A record (of a benchmark, of what was sent or spent) is missing, malformed, of a version that is not read, or cannot be written."""


class BudgetExceededError(EdgeLMError):
    """A call to a cloud endpoint might cost more than its budget allows.

    Attributes:
        resets_at: when the budget begins anew, in UTC.
    """

    def __init__(self, message: str, resets_at: datetime) -> None:
        self.resets_at = resets_at
        super().__init__(message)


class MeasurementError(EdgeLMError):
    """A benchmark could not be measured to its end."""


class MissingPackageError(EdgeLMError):
    """An optional package that the command needs is not installed."""


class EgressRefusedError(EdgeLMError):
    """Something would have left this device without permission; it has not."""


class CloudError(EdgeLMError):
    """A cloud endpoint could not be reached, refused, or broke off.

    Attributes:
        kind: one word for records and counters ("refused", "timeout", "status", "malformed", ...).
        may_be_billed: the endpoint may have computed an answer, so that the request must not be sent again.
        retry_after_s: seconds after which the endpoint wants to be asked again, where it said so.
        status: of HTTP, where there was an answer.
    """

    def __init__(
        self, message: str, kind: str, may_be_billed: bool = True, retry_after_s: float | None = None, status: int | None = None
    ) -> None:
        self.kind = kind
        self.may_be_billed = may_be_billed
        self.retry_after_s = retry_after_s
        self.status = status
        super().__init__(message)


class RedactionError(EdgeLMError):
    """A request could not be cleared of personal data and secrets, so it must not leave the device. The message shows none of them."""


class BusyError(EdgeLMError):
    """Too many requests wait already; ask again later."""


class DeadlineError(EdgeLMError):
    """A request took longer than its timeout allows."""


class ClosedError(EdgeLMError):
    """The object was closed before this call."""
