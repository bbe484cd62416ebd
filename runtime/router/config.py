"""The router's configuration file, a TOML document. Every key means something, or is refused by name.

Files that it names are looked for in its own folder, wherever the process was started.
"""

from __future__ import annotations

import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo

from edgelm.errors import InvalidRequestError
from edgelm.runtime.privacy import Level
from edgelm.runtime.router.cloud_request import FIELDS


class Table(BaseModel):
    """A table of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


def _level(value: object) -> object:
    if isinstance(value, Level):
        return value
    return Level.named(value if isinstance(value, str) else repr(value))  # the enumeration's numbers are no names


def _in_folder(path: Path, info: ValidationInfo) -> Path:
    try:
        path = path.expanduser()
    except RuntimeError:
        raise ValueError("the home folder is not known; write the whole path") from None
    return path if info.context is None else info.context["folder"] / path


def _model(name: str, info: ValidationInfo) -> str:
    """A package has no slash in its name, and a folder is written with one."""
    return str(_in_folder(Path(name), info)) if "/" in name else name


def _proxy(value: str) -> str:
    try:
        parts = urlsplit(value)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    if not fits:
        raise ValueError("a proxy must be http://host:port or https://host:port")  # without the value, which may hold a password
    return value


def _url(value: str) -> str:
    if "@" in urlsplit(value).netloc or "?" in value:
        raise ValueError("neither a password nor a query has a place in it; name the key by key_env or keyring")
    return value


LevelName = Annotated[Level, BeforeValidator(_level)]
Money = Annotated[Decimal, Field(ge=0, decimal_places=12)]
Count = Annotated[int, Field(ge=0, strict=True)]
Positive = Annotated[int, Field(ge=1, strict=True)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1)]
FilePath = Annotated[Path, AfterValidator(_in_folder)]


def _left_out(name: str) -> str:
    """A field that can be left out. Without a bound of tokens under any name, no budget would hold."""
    if name not in (*_OPTIONAL, _RENAMED):
        raise ValueError(f"only {', '.join(sorted(_OPTIONAL))} can be left out, and {_RENAMED!r} renamed")
    return name


_OPTIONAL = FIELDS - {"model", "messages", "stream", "max_tokens", "max_completion_tokens"}
_RENAMED = "max_tokens=max_completion_tokens"


class Cloud(Table):
    """`[cloud]`: the endpoint.

    Attributes:
        url: up to and with /v1.
        key_env, keyring: the environment variable that has the API key, or the service's name in the system's keyring (user "edgelm").
        max_tokens: of an answer.
        timeout, silence: seconds for a whole answer, and for which the endpoint may send nothing.
        left_out: fields that it refuses, or other names for them ("max_tokens=max_completion_tokens").
        price_input, price_output: for a million tokens.
    """

    url: Annotated[Name, AfterValidator(_url)]
    model: Name
    key_env: Name | None = None
    keyring: Name | None = None
    proxy: Annotated[str, AfterValidator(_proxy)] | None = Field(None, repr=False)
    max_tokens: Annotated[Positive, Field(le=1 << 20)] = 1024
    timeout: Annotated[Seconds, Field(le=600)] = 60.0  # a permit holds no longer
    silence: Seconds = 30.0
    left_out: tuple[Annotated[str, AfterValidator(_left_out)], ...] = ()
    price_input: Money = Decimal(0)
    price_output: Money = Decimal(0)
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] = "USD"


class Budget(Table):
    """`[budget]`: see BudgetLimits."""

    requests_per_day: Count | None = None
    tokens_per_day: Count | None = None
    money_per_day: Money | None = None
    requests_per_month: Count | None = None
    tokens_per_month: Count | None = None
    money_per_month: Money | None = None
    file: FilePath | None = None


class Redact(Table):
    """`[redact]`: beyond the patterns that are built in.

    Attributes:
        names: that are replaced wherever they stand; names_file has one a line.
        presidio: use Microsoft Presidio's patterns, too.
        spacy: a spaCy model that finds names, by its package, or by its folder with a slash.
    """

    names: tuple[str, ...] = ()
    names_file: FilePath | None = None
    presidio: bool = False
    spacy: Annotated[Name, AfterValidator(_model)] | None = None
    languages: tuple[str, ...] = ("en",)


class Before(Table):
    """`[before]`: what is decided before anything is computed.

    Attributes:
        ask_first_above: expected gain from which the cloud is asked at once.
        difficulty: a file of `edgelm route train`; the one that comes with edgelm where none is given.
    """

    ask_first_above: Annotated[float, Field(ge=-1, le=1)] | None = None
    difficulty: FilePath | None = None


class After(Table):
    """`[after]`: what is decided by the answer of this device.

    Attributes:
        calibration: a file of `edgelm route calibrate`; the one that it keeps for the model where none is given.
        threshold: in place of the calibration's.
        unknown: who answers where the confidence is not known.
    """

    calibration: FilePath | None = None
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    unknown: Literal["local", "cloud"] = "local"


class Thinking(Table):
    """`[thinking]`: see ThinkingBudget and Strategy."""

    mode: Literal["off", "on", "auto"] = "auto"
    samples: Positive = 8
    wave: Positive = 8
    tokens: Positive = 4096
    seconds: Seconds = 30.0
    agreement: Annotated[float, Field(ge=0, le=1)] = 0.6


class Stream(Table):
    """`[stream]`: holds_cloud as in Strategy."""

    holds_cloud: bool = True


class Log(Table):
    """`[log]`: of what leaves.

    Attributes:
        bodies: keep what was sent, too.
    """

    file: FilePath | None = None
    bodies: bool = False


class Rule(Table):
    """`[[rules]]`: see strategy.Rule."""

    answer: Literal["local", "cloud"]
    name: Name
    matches: str | None = None
    language: str | None = None
    min_tokens: Count | None = None
    has_tools: bool | None = None
    has_code: bool | None = None


class Key(Table):
    """`[[keys]]`: a key that opens the server, and how much its requests may let out.

    Attributes:
        key_env: the environment variable that has the key.
    """

    name: Name
    key_env: Name
    level: LevelName


class RouteConfig(Table):
    """The whole file.

    Attributes:
        level: how much may leave: nothing, unless it is said otherwise.
    """

    level: LevelName = Level.NEVER
    cloud: Cloud | None = None
    budget: Budget = Budget()
    redact: Redact = Redact()
    before: Before = Before()
    after: After = After()
    thinking: Thinking = Thinking()
    stream: Stream = Stream()
    log: Log = Log()
    rules: tuple[Rule, ...] = ()
    keys: tuple[Key, ...] = ()

    @property
    def cloud_url(self) -> str:
        """Of the endpoint; empty where there is none."""
        return "" if self.cloud is None else self.cloud.url


def read_config(path: Path) -> RouteConfig:
    """Read a file.

    Raises:
        InvalidRequestError: it cannot be read, is no TOML, or holds what makes no sense; every such place is named.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)  # money as it is written
    except OSError as error:
        raise InvalidRequestError(f"the router's configuration {path} cannot be read ({error.strerror}); name a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"{path} is no TOML document: {error}") from None
    try:
        config = RouteConfig.model_validate(document, context={"folder": path.absolute().parent})
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, each['loc']))}: {_fault(each['msg'])}" for each in error.errors(include_input=False))
        raise InvalidRequestError(f"{path}: {'; '.join(faults)}") from None  # without what stands there, which may be secret
    if config.level is not Level.NEVER and config.cloud is None:
        raise InvalidRequestError(
            f"{path}: the level is {config.level.name.lower()}, but there is no [cloud] to ask; add it, or set level to never"
        )
    if config.cloud is not None and config.cloud.key_env and config.cloud.keyring:
        raise InvalidRequestError(f"{path}: cloud has both key_env and keyring; keep one of them")
    return config


def _fault(text: str) -> str:
    return "there is no such key" if text == "Extra inputs are not permitted" else text.removeprefix("Value error, ")
