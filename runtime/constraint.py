"""Answers that must have a form: which tokens may come next is asked of llguidance, whose masks take some ten microseconds."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import InvalidRequestError, MissingPackageError
from edgelm.runtime.form import Form

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from edgelm.runtime.tokenizer import Tokenizer

Mask = NDArray[np.bool_]
MOST_CHARACTERS = 64 << 10


class Constraint:
    """The form of one answer as it grows. The next mask is computed in another thread while the engine computes the next logits."""

    def __init__(self, matcher: LLMatcher, n_vocab: int, pool: ThreadPoolExecutor) -> None:
        self._matcher = matcher
        self._n_vocab = n_vocab
        self._pool = pool
        self._bits = np.zeros(-(-n_vocab // 32), np.int32)
        self._next: Future[Mask] = pool.submit(self._compute)

    def mask(self) -> Mask:
        """Which tokens may come next, bool [n_vocab].

        Raises:
            InvalidRequestError: the form turned out to be too much work.
        """
        return self._next.result()

    def take(self, token: int) -> None:
        """The next token is this one, of those that may come."""
        self._matcher.consume_token(token)
        self._next = self._pool.submit(self._compute)

    def _compute(self) -> Mask:
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        if self._matcher.is_error():
            raise InvalidRequestError(f"the form of the answer cannot be kept to ({_first_line(self._matcher.get_error())}); simplify it")
        return np.unpackbits(self._bits.view(np.uint8), count=self._n_vocab, bitorder="little").view(np.bool_)


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
        self._tokenizer = LLTokenizer(TokenizerWrapper(_Vocabulary(tokenizer, ends[0])), n_vocab=n_vocab, eos_token=ends)
        self._pool = ThreadPoolExecutor(1, "edgelm-masks")

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
        return Constraint(matcher, self._n_vocab, self._pool)


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
