"""What an answer must be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from edgelm.errors import InvalidRequestError


@dataclass(frozen=True)
class Form:
    """A language that an answer is a sentence of.

    Attributes:
        kind: of the text: a JSON schema; a regular expression, of Rust's kind; a grammar, of Lark's kind or of llama.cpp's (GBNF).
        text: which schema, expression or grammar.
    """

    kind: Literal["json_schema", "regex", "lark", "gbnf"]
    text: str

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any]) -> Self:
        """JSON that keeps to a schema; an empty one allows any JSON.

        Raises:
            InvalidRequestError: the schema cannot be written as JSON.
        """
        try:
            return cls("json_schema", json.dumps(schema, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidRequestError(f"the JSON schema cannot be written as JSON ({error})") from None


JSON_OBJECT = Form("json_schema", '{"type": "object"}')
"""Any JSON object."""
