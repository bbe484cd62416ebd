"""In which language a text is: by its script, and for Latin letters by short words. Says "und" rather than guess."""

from __future__ import annotations

import re
from collections import Counter

UNKNOWN = "und"
"""BCP 47's word for a language that is not known; with a script, as in "und-Cyrl", where several languages share it."""

_MAX_CHARACTERS = 2_000  # of a text that are looked at
_MIN_SHARE = 0.12  # of all words: in running prose of any of these languages, a quarter and more are function words
_MIN_DISTINCT = 2  # different ones
_MIN_LEAD = 1.5  # times as many as of the next language

_SCRIPTS = (
    ("ja", re.compile(r"[\u3040-\u30ff]")),  # before Chinese: Japanese has both kana and Han
    ("ko", re.compile(r"[\u1100-\u11ff\uac00-\ud7af]")),
    ("zh", re.compile(r"[\u3400-\u9fff]")),
    ("el", re.compile(r"[\u0370-\u03ff]")),
    ("he", re.compile(r"[\u0590-\u05ff]")),
    ("th", re.compile(r"[\u0e00-\u0e7f]")),
    ("und-Cyrl", re.compile(r"[\u0400-\u04ff]")),
    ("und-Arab", re.compile(r"[\u0600-\u06ff]")),
    ("und-Deva", re.compile(r"[\u0900-\u097f]")),
)
_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]{2,}")
_FUNCTION_WORDS = {
    language: frozenset(words.split())
    for language, words in {
        "en": "the of and to in is that it was for on are as with they at be this have from what which how were by not but you if",
        "de": "der die das und ist nicht ein eine zu den von mit sich des auf für im dem wie auch werden sind aus wird bei was ich du",
        "fr": "le la les et est une des dans que qui pour pas sur avec du au ce il elle sont vous nous je quel quelle aux mais comment",
        "es": "el la los las es una que en por para con del se su al lo como más pero qué cuál son está no un cómo de",
        "it": "il lo la gli una che di in per con del della si al le un come più ma sono qual nel non cosa dei alla",
        "pt": "os as uma que em por para com do da se ao um como mais mas são não qual no na dos você de",
        "nl": "de het een en is van dat niet te op zijn met voor er aan ook als maar bij wat hoe uit wordt deze ik je",
    }.items()
}


def language_of(text: str) -> str:
    """A BCP 47 tag: "en", "de", "zh", ...; "und-Cyrl" where only the script is known, "und" where nothing is."""
    text = text[:_MAX_CHARACTERS]
    latin = [word.lower() for word in _LATIN.findall(text)]
    if not text.isascii():
        n_latin = sum(map(len, latin))
        for tag, letters in _SCRIPTS:
            n_others = len(letters.findall(text))
            if n_others and n_others * (4 if tag == "ja" else 1) > n_latin:  # a few kana among Han, or a name in Latin letters
                return tag
    counts = Counter(latin)
    found = {language: [counts[word] for word in words if word in counts] for language, words in _FUNCTION_WORDS.items()}
    (best, n_best), (_, n_next) = Counter({language: sum(n) for language, n in found.items()}).most_common(2)
    is_clear = len(found[best]) >= _MIN_DISTINCT and n_best >= _MIN_SHARE * len(latin) and n_best >= _MIN_LEAD * n_next
    return best if is_clear else UNKNOWN
