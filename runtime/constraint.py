"""Answers that must have a form: which tokens may come next is asked of llguidance, whose masks take some ten microseconds."""

from __future__ import annotations

import threading
import weakref
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import InvalidRequestError, MissingPackageError
from edgelm.runtime.form import Form

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from edgelm.runtime.tokenizer import Tokenizer

Mask = NDArray[np.float32]
MOST_CHARACTERS = 64 << 10

_BITS_OF_EIGHT = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_OF_EIGHT = np.where(_BITS_OF_EIGHT, np.float32(0), np.float32(-np.inf))
"""float32 [256, 8]: for each byte of llguidance's masks, what its tokens get."""


class Constraint:
    """The form of one answer as it grows.

    Whether one token may come next is asked in a microsecond; which of all may, the mask, takes a hundred. A model that knows the form
    seldom needs the mask. Where it did, it may well need the next one too, which is then computed in another thread while the engine
    computes the next logits.
    """

    def __init__(self, matcher: LLMatcher, n_vocab: int, ends: frozenset[int], asked: SimpleQueue[Constraint | None]) -> None:
        self._matcher = matcher
        self._ends = ends
        self._n_vocab = n_vocab
        self._bits = np.zeros(-(-n_vocab // 32), np.int32)
        self._asked = asked
        self._coming: SimpleQueue[Mask | Exception] = SimpleQueue()
        self._is_coming = False
        self._mask: Mask | None = None

    def allows(self, token: int) -> bool:
        """Whether the token may come next.

        Raises:
            InvalidRequestError: the form turned out to be too much work.
        """
        if self._is_coming or self._mask is not None:
            return bool(self.mask()[token] == 0)
        if token in self._ends:
            return bool(self._matcher.is_accepting())
        return bool(self._matcher.validate_tokens([token]))

    def mask(self) -> Mask:
        """To be added to the logits: float32 [n_vocab], 0 where a token may come next, else minus infinity. Errors as of allows."""
        if self._mask is None:
            found = self._coming.get() if self._is_coming else self._compute()
            self._is_coming = False
            if isinstance(found, Exception):
                raise found
            self._mask = found
        return self._mask

    def take(self, token: int) -> None:
        """The next token is this one, of those that may come."""
        self._matcher.consume_token(token)
        if self._mask is not None:
            self._mask, self._is_coming = None, True
            self._asked.put(self)

    def compute_ahead(self) -> None:
        """The next mask, in the thread of the masks."""
        self._coming.put(self._compute())

    def _compute(self) -> Mask | Exception:
        try:
            self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
            if self._matcher.is_error():
                reason = _first_line(self._matcher.get_error())
                return InvalidRequestError(f"the form of the answer cannot be kept to ({reason}); simplify it")
            return _OF_EIGHT.take(self._bits.view(np.uint8), axis=0).reshape(-1)[: self._n_vocab]
        except Exception as error:  # noqa: BLE001  whatever it is, somebody waits for it
            return error


def _compute_masks(asked: SimpleQueue[Constraint | None]) -> None:
    while (constraint := asked.get()) is not None:
        constraint.compute_ahead()


class ConstraintFactory:
    """Makes constraints for one tokenizer.

    Args:
        n_vocab: of the logits, which may have more entries than the tokenizer has tokens.

    Raises:
        MissingPackageError: llguidance is not installed.
    """

    def __init__(self, tokenizer: Tokenizer, n_vocab: int) -> None:
        try:
            from llguidance import LLTokenizer, TokenizerWrapper
        except ImportError as error:
            raise MissingPackageError(
                f"forms of answers need llguidance, which is not installed ({error}); pip install llguidance"
            ) from None
        ends = sorted(tokenizer.eog_ids)
        if not ends:
            raise InvalidRequestError("the model has no token that ends an answer, so that none can be held to a form")
        self._n_vocab = n_vocab
        self._ends = frozenset(ends)
        self._tokenizer = LLTokenizer(TokenizerWrapper(_Vocabulary(tokenizer, ends[0])), n_vocab=n_vocab, eos_token=ends)
        self._asked: SimpleQueue[Constraint | None] = SimpleQueue()  # an executor's futures would cost more than the masks
        weakref.finalize(self, self._asked.put, None)
        threading.Thread(target=_compute_masks, args=(self._asked,), name="edgelm-masks", daemon=True).start()

    def make(self, form: Form) -> Constraint:
        """
        Raises:
            InvalidRequestError: the schema, expression or grammar is malformed, not supported, or too large.
        """
        from llguidance import LLMatcher

        what = form.kind.replace("_", " ")
        if len(form.text) > MOST_CHARACTERS:
            raise InvalidRequestError(f"the {what} has {len(form.text):,} characters; give {MOST_CHARACTERS:,} at most")
        try:
            matcher = LLMatcher(self._tokenizer, _grammar(form), log_level=0)
        except (ValueError, RecursionError) as error:
            raise InvalidRequestError(f"the {what} cannot be used: {_first_line(str(error))}") from None
        if matcher.is_error():
            raise InvalidRequestError(f"the {what} cannot be used: {_first_line(matcher.get_error())}")
        return Constraint(matcher, self._n_vocab, self._ends, self._asked)


class _Vocabulary:
    """A tokenizer as llguidance wants it."""

    def __init__(self, tokenizer: Tokenizer, end: int) -> None:
        self.eos_token_id = end
        self.bos_token_id = tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(token) for token in range(tokenizer.n_vocab)]
        self.special_token_ids = [token for token in range(tokenizer.n_vocab) if tokenizer.is_special(token)]
        self._tokenizer = tokenizer

    def __call__(self, text: str | bytes) -> list[int]:
        return self._tokenizer.encode(text, parse_special=False)


def _grammar(form: Form) -> str:
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import any_to_lark

    match form.kind:
        case "json_schema":  # one space at most where JSON allows any number: small models would go on with spaces for ever
            return LLMatcher.grammar_from_json_schema(form.text, defaults={"whitespace_pattern": "[ ]"})
        case "regex":
            return LLMatcher.grammar_from_regex(form.text)
        case "lark":
            return LLMatcher.grammar_from_lark(form.text)
        case "gbnf":
            try:
                return LLMatcher.grammar_from_lark(any_to_lark(form.text))
            except Exception as error:  # noqa: BLE001  any_to_lark raises nothing more special
                raise ValueError(str(error)) from None


def _first_line(text: str) -> str:
    return text.strip().split("\n", 1)[0][:200]
