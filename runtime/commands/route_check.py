"""`edgelm route check`: what a configuration of the router comes to, in plain words. Nothing is connected, and no file made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgelm.errors import CloudError
from edgelm.runtime.commands.route_spent import Config
from edgelm.runtime.commands.routing import configuration
from edgelm.runtime.privacy import Level
from edgelm.runtime.settings import is_offline, read_settings, variable

if TYPE_CHECKING:
    from edgelm.runtime.router.config import Cloud, RouteConfig, Rule
    from edgelm.runtime.settings import Settings

_LEVELS = {
    Level.NEVER: "nothing leaves this device",
    Level.ASK: "a person is asked each time before anything leaves",
    Level.REDACT: "personal data that is recognized is replaced before anything leaves",
    Level.ALLOW: "conversations leave as they are",
}


def check(file: Config) -> None:
    """Say what a configuration comes to, without connecting to anything; exit with 1 if it makes no sense."""
    config, settings = configuration(file), read_settings()
    from edgelm.runtime.commands.tables import print_facts
    from edgelm.runtime.router.budget import Budget, was_begun
    from edgelm.runtime.router.confidence import Calibration
    from edgelm.runtime.router.deployment import Deployment, budget_path, limits_of, price_of

    Deployment(config.model_copy(update={"level": Level.NEVER}), settings)  # all that is named, but neither budget nor log is made
    if config.after.calibration is not None:
        Calibration.load(config.after.calibration)
    limits, price, budget = limits_of(config), price_of(config), budget_path(config, settings)
    if config.level is not Level.NEVER and was_begun(budget):
        Budget(budget, limits, price)  # refuses one that is damaged
    print_facts(_facts(config, settings))


def _facts(config: RouteConfig, settings: Settings) -> Iterator[tuple[str, str]]:
    yield "level", f"{config.level.name.lower()}: {_LEVELS[config.level]}"
    if is_offline():
        yield "offline", "EDGELM_OFFLINE is set, and nothing leaves as long as it is"
    if config.cloud is None:
        yield "endpoint", "none"
    else:
        yield from _endpoint(config.cloud, config, settings)
    yield "redaction", _redaction(config)
    yield "before an answer", _before(config)
    yield "after an answer", _after(config)
    for rule in config.rules:
        yield f"rule {rule.name}", _rule(rule)
    for key in config.keys:
        there = "is set" if variable(key.key_env) else "is NOT SET, so that no server starts"
        yield f"server key {key.name}", f"level {min(key.level, config.level).name.lower()}; {key.key_env} {there}"


def _endpoint(cloud: Cloud, config: RouteConfig, settings: Settings) -> Iterator[tuple[str, str]]:
    from edgelm.runtime.router.deployment import budget_path, endpoint_of, log_path

    address = endpoint_of(cloud).address
    proxy = ", through a proxy" if cloud.proxy else ""
    unused = ", which is never asked at this level" if config.level is Level.NEVER else ""
    yield "endpoint", f"{address.url}{proxy}{unused}"
    yield "model", f"{cloud.model}, for answers of up to {cloud.max_tokens:,} tokens within {cloud.timeout:g} s"
    try:
        key = address.key()
    except CloudError as error:
        yield "key", f"MISSING, so that this device answers everything: {error}"
    else:
        place = f"the environment variable {cloud.key_env}" if cloud.key_env else f"the keyring's entry {cloud.keyring!r}"
        yield "key", "none is sent" if key is None else f"is there, in {place}"
    yield "price", f"{cloud.price_input:f} {cloud.currency} for a million tokens read, {cloud.price_output:f} written"
    yield "budget of a day", _budget(cloud, config, "day")
    yield "budget of a month", _budget(cloud, config, "month")
    yield "spending kept in", f"{budget_path(config, settings)}"
    yield "log of what leaves", f"{log_path(config, settings)}, {'with' if config.log.bodies else 'without'} the texts"


def _budget(cloud: Cloud, config: RouteConfig, period: str) -> str:
    requests, tokens, money = (getattr(config.budget, f"{name}_per_{period}") for name in ("requests", "tokens", "money"))
    bounds = [f"{n:,} {name}" for n, name in ((requests, "requests"), (tokens, "tokens")) if n is not None]
    if money is not None:
        is_free = not (cloud.price_input or cloud.price_output)
        bounds.append(f"{money:f} {cloud.currency}{' (BOUNDS NOTHING: both prices are 0)' if is_free else ''}")
    return f"at most {', '.join(bounds)}" if bounds else "no bound"


def _redaction(config: RouteConfig) -> str:
    redact = config.redact
    found = ["edgelm's own patterns"]
    if redact.names or redact.names_file:
        found.append("the names given")
    if redact.presidio or redact.spacy:
        found.append(f"Presidio's patterns for {', '.join(redact.languages)}")
    if redact.spacy:
        found.append(f"names by the spaCy model {redact.spacy}")
    return "; ".join(found)


def _before(config: RouteConfig) -> str:
    gain = config.before.ask_first_above
    if gain is None:
        return "this device begins"
    return f"the cloud is asked first from an expected gain of {gain:g} on, by {config.before.difficulty or 'what comes with edgelm'}"


def _after(config: RouteConfig) -> str:
    after, thinking = config.after, config.thinking
    calibration = after.calibration or "the calibration that is kept for the model"
    trusted = f"the threshold of {calibration}" if after.threshold is None else f"a confidence of {after.threshold:g}, by {calibration}"
    thought = {"off": "not thought over", "on": "thought over first", "auto": "thought over first where that may help"}[thinking.mode]
    who = "this device" if after.unknown == "local" else "the cloud"
    return f"trusted from {trusted}; otherwise {thought}; where the confidence is not known, {who} answers"


def _rule(rule: Rule) -> str:
    conditions = (
        (rule.matches, f"{rule.matches!r} is found"),
        (rule.language, f"the language is {rule.language}"),
        (rule.min_tokens, f"it has {rule.min_tokens} tokens or more"),
        (rule.has_tools, "tools are offered" if rule.has_tools else "no tools are offered"),
        (rule.has_code, "code is shown" if rule.has_code else "no code is shown"),
    )
    where = "answered here" if rule.answer == "local" else "asked of the cloud"
    return f"{where} if {' and '.join(text for value, text in conditions if value is not None)}"
