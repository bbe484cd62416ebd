"""What an answer's text looks like, in a few numbers: beside its certainties they tell which sorts of answers go wrong, of any subject."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

SHAPE = ("words", "sentences", "digits", "repetition")
"""Names of what `shape_of` gives, in order.

words, sentences: ln(1 + how many). digits: 1 where there are any: a number is right or wrong, wording seldom is. repetition: share of the
triples of words that stood there before: a small model that is lost goes round in circles.
"""

MOST_CHARACTERS = 20_000
"""Of an answer that are looked at."""

_WORD = re.compile(r"\w+")
_END = re.compile(r"[.!?](?=\s|$)")
_DIGIT = re.compile(r"\d")


def shape_of(text: str) -> NDArray[np.float64]:
    """The numbers of SHAPE, float64 [4]."""
    text = text[:MOST_CHARACTERS]
    words = _WORD.findall(text.lower())
    triples = [(first, *second) for first, second in zip(words, pairwise(words[1:]), strict=False)]
    repetition = 1 - len(set(triples)) / len(triples) if triples else 0.0
    return np.array([math.log1p(len(words)), math.log1p(len(_END.findall(text))), float(_DIGIT.search(text) is not None), repetition])
