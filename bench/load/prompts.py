"""Prompts of about so many tokens, made of words that most vocabularies hold whole."""

from __future__ import annotations

import random

_WORDS = """
the of and to in is that for it was on with as be at by this had not are but from or have an they which one you were all her she there
would their we him been has when who will no more if out so up said what its about than into them can only other time new some could these
two may first then do any like my now over such our man me even most made after also did many off before must well back through years much
where your way down should because long each just state those people too mr how little good world make very year still see work life men
here both between old under last never place same another think house while high right might came great went again few home hand war night
water small large end white day head set given order room book city young
"""


class Prompts:
    """Texts of `n_tokens` words, about one token each.

    Args:
        n_tokens: about how long a prompt is; the server counts what it is exactly, its chat template included.
        seed: the same seed gives the same texts in the same order.
        same: give one text again and again, so that a server's prefix cache may help.
    """

    def __init__(self, n_tokens: int, seed: int = 0, same: bool = False) -> None:
        self._n = n_tokens
        self._random = random.Random(seed)
        self._same = self._text() if same else None

    def next(self) -> str:
        """The next text."""
        return self._same or self._text()

    def _text(self) -> str:
        return " ".join(self._random.choices(_WORDS.split(), k=self._n))
