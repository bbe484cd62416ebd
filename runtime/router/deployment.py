"""From the configuration file to routers: what all of them in a process share, and what each model has of its own."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from edgelm.errors import InvalidRequestError
from edgelm.runtime.chat_model import ChatModel
from edgelm.runtime.privacy import Level
from edgelm.runtime.router import config as file
from edgelm.runtime.router.amounts import BudgetLimits, Price
from edgelm.runtime.router.asking import AskPerson
from edgelm.runtime.router.budget import Budget
from edgelm.runtime.router.cloud import CloudEndpoint, Endpoint
from edgelm.runtime.router.difficulty import Difficulty
from edgelm.runtime.router.egress import Address, Limits
from edgelm.runtime.router.egress_log import EgressLog
from edgelm.runtime.router.entities import CoreRecognizer
from edgelm.runtime.router.keys import key_of
from edgelm.runtime.router.ledger import Ledger
from edgelm.runtime.router.policy import Policy
from edgelm.runtime.router.recognizer import Recognizer
from edgelm.runtime.router.redact import Redactor
from edgelm.runtime.router.router import Router
from edgelm.runtime.router.strategy import Rule, Strategy, Trust
from edgelm.runtime.router.thinking import ThinkingBudget
from edgelm.runtime.settings import Settings, read_settings, variable


class Deployment:
    """Everything that a configuration file sets up. At level never there is no endpoint, and nothing of it is made.

    Raises:
        InvalidRequestError, MissingPackageError, RecordError: something that it names is not there, or makes no sense.
    """

    def __init__(self, config: file.RouteConfig, settings: Settings | None = None) -> None:
        settings = settings or read_settings()
        self.config = config
        self.policy = Policy(config.level)
        self.redactor = Redactor(_recognizers(config.redact))
        self.cloud: CloudEndpoint | None = None
        if config.cloud is not None and config.level is not Level.NEVER:
            endpoint = endpoint_of(config.cloud)  # before any file is made
            if budget_path(config, settings) == log_path(config, settings):
                raise InvalidRequestError(f"budget and log are both to be {budget_path(config, settings)}; give each a file of its own")
            budget = Budget(budget_path(config, settings), limits_of(config), price_of(config))
            log = EgressLog(log_path(config, settings), config.log.bodies)
            self.cloud = CloudEndpoint(endpoint, self.policy, Ledger(budget, log))
        before = config.before
        self._difficulty = None if before.ask_first_above is None else _difficulty(before.difficulty)
        self._rules = tuple(Rule(**rule.model_dump()) for rule in config.rules)

    @property
    def levels_of_keys(self) -> dict[str, Level]:
        """The keys that open the server, with their levels.

        Raises:
            InvalidRequestError: a variable has no key.
        """
        found: dict[str, Level] = {}
        for key in self.config.keys:
            value = variable(key.key_env)
            if not value:
                raise InvalidRequestError(f"the key {key.name!r} is to be in {key.key_env}, which is not set; set it, or take the key away")
            found[value] = min(key.level, found.get(value, Level.ALLOW))
        return found

    def router(self, local: ChatModel, trust: Trust | None, ask_person: AskPerson | None = None) -> Router:
        """A router before a model.

        Args:
            trust: in the model's answers; None where it is not calibrated.
        """
        config, thinking = self.config, self.config.thinking
        strategy = Strategy(
            rules=self._rules,
            difficulty=self._difficulty,
            ask_first_above=config.before.ask_first_above,
            trust=trust,
            unknown=config.after.unknown,
            thinking=thinking.mode,
            budget=ThinkingBudget(thinking.samples, thinking.wave, thinking.tokens, thinking.seconds),
            agreement=thinking.agreement,
            holds_cloud=config.stream.holds_cloud,
        )
        return Router(local, self.cloud, self.policy, strategy, self.redactor, ask_person)

    async def close(self) -> None:
        """Close the connections to the endpoint."""
        if self.cloud is not None:
            await self.cloud.close()


def endpoint_of(cloud: file.Cloud) -> Endpoint:
    """The endpoint of a table `[cloud]`.

    Raises:
        InvalidRequestError: its address is none, or is not encrypted.
    """
    url = cloud.url.rstrip("/")
    address = Address(
        url if url.endswith("/chat/completions") else f"{url}/chat/completions", key_of(cloud.key_env, cloud.keyring), cloud.proxy
    )
    return Endpoint(address, cloud.model, cloud.max_tokens, cloud.timeout, cloud.left_out, cloud.currency, Limits(silence_s=cloud.silence))


def limits_of(config: file.RouteConfig) -> BudgetLimits:
    """What may be spent.

    Raises:
        InvalidRequestError: a limit is too large.
    """
    return BudgetLimits(**{field.name: getattr(config.budget, field.name) for field in fields(BudgetLimits)})


def price_of(config: file.RouteConfig) -> Price:
    """Of the endpoint's tokens; nothing where there is no endpoint.

    Raises:
        InvalidRequestError: a price is too large.
    """
    return Price(0, 0) if config.cloud is None else Price(config.cloud.price_input, config.cloud.price_output)


def budget_path(config: file.RouteConfig, settings: Settings) -> Path:
    """The file in which is kept what was spent."""
    return config.budget.file or settings.budget


def log_path(config: file.RouteConfig, settings: Settings) -> Path:
    """The log of what left."""
    return config.log.file or settings.egress_log


def _difficulty(path: Path | None) -> Difficulty:
    return Difficulty.default() if path is None else Difficulty.read(path)


def _recognizers(redact: file.Redact) -> tuple[Recognizer, ...]:
    core = CoreRecognizer((*redact.names, *_names(redact.names_file)))
    if not (redact.presidio or redact.spacy):
        return (core,)
    from edgelm.runtime.router.presidio import PresidioRecognizer

    return (core, PresidioRecognizer(redact.languages, redact.spacy))


def _names(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"the names file {path} cannot be read ({error}); write one name a line, in UTF-8") from None
