"""Keys, tokens and passwords."""

from __future__ import annotations

import re

from edgelm.runtime.router.patterns import BEGIN, Entity

_PASSWORD = r"pass(?:word|wd|phrase|code)|pwd|passwort|kennwort|contrasena|senha|mot de passe|wachtwoord|haslo|losenord"
_KEY = (
    r"secret|(?:api|access|account|private|auth|encryption|signing|master)[ _-]?key|credential|webhook|session[ _-]?id|cookie|"
    r"(?:access|auth|refresh|session|bearer|id|api|bot)?[ _-]?token(?!s)|\bpin\b|\bcv[vc]2?\b"
)
# between a name and what it is set to: the rest of the name, its quotes, markdown's emphasis
_IS = r"""s?(?:[ _-](?:id|key|prod|dev|test|live|base|hash|value|\d{1,3})){0,2}["'*_`]{0,3}\s{0,3}(?:=>|:=|[:=])[*_]{0,3}\s{0,3}"""
_QUOTED = r"""(?P<quote>["'`])(?P<value>(?:(?!(?P=quote))[^\n]){3,200})(?P=quote)"""
_BARE = r"""(?P<value>[^\s"'`]{3,199}[^\s"'`.,;:!?)\]}>])"""
_CODE = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*[(\[]|[A-Za-z_]+(?:\.[A-Za-z_]+)+$|[a-z]+(?:_[a-z]+)+$")
_NOT_YET = re.compile(r"[$%]?\{|[*:•.x-]+$|\$\w+$|%\w+%$|<[\w ./-]*>?$|(.)\1*$|your\b|my_")  # a place for a secret, or a masked one
_BRACKET = re.compile(r"[()\[\]{}]")
_PASSWORD_HINTS = ("pass", "pwd", "kennwort", "contrasena", "senha", "wachtwoord", "haslo", "losenord")
_KEY_HINTS = ("secret", "key", "credential", "webhook", "session", "cookie", "token", "pin", "cv")
_AWS = ("akia", "asia", "agpa", "aida", "aroa", "anpa", "abia", "acca")
# what follows a label without being a secret
_WORDS = frozenset(
    {
        "string",
        "none",
        "null",
        "true",
        "false",
        "undefined",
        "required",
        "optional",
        "missing",
        "wrong",
        "invalid",
        "incorrect",
        "expired",
        "empty",
        "forgotten",
        "reset",
        "changed",
        "change",
        "please",
        "must",
        "should",
        "field",
        "value",
        "text",
        "hidden",
        "password",
        "passwort",
        "secret",
        "token",
        "bytes",
        "char",
        "varchar",
        "object",
        "number",
        "integer",
        "boolean",
        "bool",
        "when",
        "then",
        "that",
        "this",
        "what",
        "with",
        "your",
        "from",
        "have",
        "been",
        "will",
        "were",
        "here",
        "does",
        "where",
        "which",
        "there",
    }
)


def _is_secret(text: str) -> bool:
    return text.lower() not in _WORDS and not _NOT_YET.match(text)


def _is_password(text: str) -> bool:
    return _is_secret(text) and not _CODE.match(text)


def _has_digit(text: str) -> bool:
    return _is_password(text) and any(each.isdigit() for each in text)


def _is_key(text: str) -> bool:
    return len(text) >= 8 and _has_digit(text) and not text.replace("_", "").isdigit() and not _BRACKET.search(text)


def _is_quoted_key(text: str) -> bool:
    return _is_secret(text) and (len(text) >= 8 or text.isdigit()) and any(each.isdigit() for each in text)


def _token(pattern: str, *hints: str) -> Entity:
    return Entity("API_KEY", f"{BEGIN}(?:{pattern})", None, None, hints)


CREDENTIALS = (
    Entity(
        "PRIVATE_KEY",
        r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
        r"(?:(?:[^-]|-(?!----)){0,30000}-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|[A-Za-z0-9+/=\s\\]{0,30000})",
        hints=("private key",),
    ),
    _token(r"(?:AKIA|ASIA|AGPA|AIDA|AROA|ANPA|ABIA|ACCA)[A-Z2-7]{16}(?![A-Za-z0-9])", *_AWS),
    _token(r"gh[pousr]_[A-Za-z0-9]{30,255}|github_pat_[A-Za-z0-9_]{22,255}", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
    _token(r"glpat-[A-Za-z0-9_.-]{20,100}", "glpat-"),
    _token(r"sk-[A-Za-z0-9_-]{20,250}", "sk-"),  # OpenAI's, and Anthropic's sk-ant-
    _token(r"xox[a-z]-[A-Za-z0-9-]{10,250}|xapp-[A-Za-z0-9-]{10,250}", "xox", "xapp-"),
    _token(r"AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9_-]{20,500}", "aiza", "ya29."),
    _token(r"[srp]k_(?:live|test)_[A-Za-z0-9]{10,250}|whsec_[A-Za-z0-9+/=]{16,100}", "k_live_", "k_test_", "whsec_"),
    _token(r"hf_[A-Za-z0-9]{30,60}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,250}", "hf_", "npm_", "pypi-"),
    _token(r"SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{16,64}|dop_v1_[a-f0-9]{64}", "sg.", "dop_v1_"),
    _token(r"\d{8,10}:AA[A-Za-z0-9_-]{33}", ":aa"),  # Telegram's
    Entity("API_KEY", r"hooks\.slack\.com/(?:services|workflows)/(?P<value>[A-Za-z0-9/_-]{20,100})", hints=("hooks.slack.com",)),
    Entity("TOKEN", r"(?:(?<![\w-])|(?<=\\[nrt]))eyJ[\w-]{8,8000}\.[\w-]{8,8000}\.[\w-]{0,2000}", hints=("eyj",)),
    Entity(
        "TOKEN",
        r"(?i:authorization[\"']?\s{0,3}[:=]\s{0,3}[\"']?(?:(?:bearer|basic|token|apikey|digest)\s{1,3})?)(?P<value>[^\s\"',;]{8,4000})",
        _is_password,
        hints=("authorization",),
    ),
    Entity("TOKEN", r"(?i:\b(?:bearer|basic)\s{1,3})(?P<value>[\w.~+/=-]{12,4000})", _has_digit, hints=("bearer", "basic")),
    Entity("CREDENTIALS", r"://(?P<value>[^\s/@:\"'<>]{0,128}:[^\s/@\"'<>]{1,256}@[^\s/:@\"'<>]{0,253})", hints=("://",)),
    Entity("PASSWORD", f"(?i:(?:{_PASSWORD}){_IS}){_QUOTED}", _is_secret, hints=_PASSWORD_HINTS),
    Entity("PASSWORD", f"(?i:(?:{_PASSWORD}){_IS}){_BARE}", _is_password, hints=_PASSWORD_HINTS),
    Entity("PASSWORD", rf"(?i:\b(?:{_PASSWORD})\s(?:is|ist|lautet|es|est)\s{{1,3}})[\"'`]?{_BARE}", _has_digit, hints=_PASSWORD_HINTS),
    Entity("SECRET", f"(?i:(?:{_KEY}){_IS}){_QUOTED}", _is_quoted_key, hints=_KEY_HINTS),
    Entity("SECRET", f"(?i:(?:{_KEY}){_IS}){_BARE}", _is_key, hints=_KEY_HINTS),
    Entity(
        "PIN",
        r"(?i:\b(?:pin|cv[vc]2?)\b(?: code| number)?[\"']?\s{0,2}(?:[:=]|is)\s{0,2}[\"']?)(?P<value>\d{3,8})(?!\d)",
        hints=("pin", "cv"),
    ),
)
