r"""How byte-pair tokenizers cut text into words before merging, one row per name that `tokenizer.ggml.pre` may have.

The words must be those of llama.cpp, whose regex engine knows no Unicode: it replaces each character beyond ASCII by a byte for its
class, and matches the regex on that. The same is done here, so that its peculiarities (letters beyond ASCII have no case) come out the
same. A pattern that names a class (`\p{L}`) is matched on the class string; one that names none, on the text itself.
Sources: the regexes in the models' own tokenizer.json, and src/llama-vocab.cpp and src/unicode.cpp of llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from types import MappingProxyType
from typing import Protocol

import numpy as np

from edgelm.errors import UnsupportedModelError
from edgelm.runtime.unicode_classes import CLASS_BYTES, blank_spaces, class_string, code_points

# What a class stands for inside [...] on a class string: its byte, and its ASCII characters.
_CLASSES = {
    "N": chr(CLASS_BYTES["N"]) + "0-9",
    "L": chr(CLASS_BYTES["L"]) + "A-Za-z",
    "M": chr(CLASS_BYTES["M"]),
    "P": chr(CLASS_BYTES["P"]) + r"!-#%-*,-/:-;?-@\[-\]_{}",
    "S": chr(CLASS_BYTES["S"]) + r"$+<->\^`|~",
}
# Letters that are not lower (upper) case ASCII. llama.cpp cannot tell the case of other letters.
UPPER = chr(CLASS_BYTES["L"]) + "A-Z"
LOWER = chr(CLASS_BYTES["L"]) + "a-z"
_HAN, _UNASSIGNED_HAN = "\xd6", "\xd7"
_HAN_RANGES = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2EBEF),
    (0x2F800, 0x2FA1F),
)


class _Views:
    """The forms of one text that patterns are matched on; all have one character per code point."""

    def __init__(self, text: str) -> None:
        self._text = text

    @cached_property
    def text(self) -> str:
        return blank_spaces(self._text)

    @cached_property
    def classes(self) -> str:
        return class_string(self._text)

    @cached_property
    def han_classes(self) -> str:
        """The class string with Han characters in classes of their own."""
        points = code_points(self._text)
        is_han = np.logical_or.reduce([(points >= first) & (points <= last) for first, last in _HAN_RANGES])
        classes = np.frombuffer(self.classes.encode("latin-1"), np.uint8)
        is_letter = classes == CLASS_BYTES["L"]
        han = np.where(is_han & is_letter, ord(_HAN), np.where(is_han, ord(_UNASSIGNED_HAN), classes))
        return han.astype(np.uint8).tobytes().decode("latin-1")


class Step(Protocol):
    """One pass over the text, which cuts the pieces left by the pass before."""

    def view(self, views: _Views) -> str: ...
    def cuts(self, piece: str) -> Iterator[int]:
        """Where to cut a non-empty piece, in ascending order; its end may be left out, and a position may come twice."""
        ...


@dataclass(frozen=True)
class Match:
    """Each match is a piece, and so is what lies between two matches."""

    pattern: str
    han: bool = False

    def view(self, views: _Views) -> str:
        if self.han:
            return views.han_classes
        return views.classes if r"\p{" in self.pattern else views.text

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        return re.compile(_expand(self.pattern), re.ASCII)

    def cuts(self, piece: str) -> Iterator[int]:
        for match in self._regex.finditer(piece):
            yield from match.span()


@dataclass(frozen=True)
class MatchAndCut(Match):
    """Each match is cut at places counted from its (start, end); nothing is cut outside.

    Attributes:
        boundary: a regex that matches nothing, at the same places.
    """

    places: Callable[[int, int], Iterable[int]] = lambda start, end: (start, end)
    boundary: str = ""

    def cuts(self, piece: str) -> Iterator[int]:
        for match in self._regex.finditer(piece):
            yield from self.places(*match.span())


def _expand(pattern: str) -> str:
    r"""Replace \p{X} by the characters of class X, in brackets unless it stands in brackets."""

    def replacement(match: re.Match[str]) -> str:
        if match["escape"]:
            return match["escape"]
        if match["bracket"]:
            return re.sub(r"\\p\{(\w)\}", lambda inner: _CLASSES[inner[1]], match["bracket"])
        return f"[{_CLASSES[match['name']]}]"

    return re.sub(r"\\p\{(?P<name>\w)\}|(?P<escape>\\.)|(?P<bracket>\[(?:\\.|[^\]\\])+\])", replacement, pattern, flags=re.DOTALL)


@dataclass(frozen=True)
class PreTokenizer:
    """How a family of byte-pair tokenizers prepares text.

    Attributes:
        names: values of tokenizer.ggml.pre that ask for it.
        steps: passes over the text, in order.
        ignore_merges: a word that is a token is taken whole, even where merging would end elsewhere.
        add_bos: the default where the file has no tokenizer.ggml.add_bos_token.
        byte_level: words are spelt in GPT-2's byte alphabet; otherwise in UTF-8 with "▁" for space and <0xNN> for what is missing.
        whole_newlines: a run of newlines that is a token is taken whole.
    """

    names: tuple[str, ...]
    steps: tuple[Step, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    byte_level: bool = True
    whole_newlines: bool = False

    def split(self, text: str) -> list[str]:
        """The words of the text; joined, they are the text. Lone surrogates are allowed."""
        views = _Views(text)
        ends = [0, len(text)]
        for step in self.steps:
            view = step.view(views)
            ends = [0, *_cut_pieces(step, view, ends)]
        return [text[start:end] for start, end in pairwise(ends) if start < end]


def _cut_pieces(step: Step, view: str, ends: list[int]) -> Iterator[int]:
    for start, end in pairwise(ends):
        if start < end:
            for cut in step.cuts(view[start:end]):
                yield start + cut
            yield end


SHORT_FORMS = r"'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])"
_SPACES = r"\s+(?!\S)|\s+"
_LINES = rf"\s*[\r\n]+|{_SPACES}"
_PUNCTUATION = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_GPT2 = Match(rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|{_SPACES}")
_DIGIT = Match(r"\p{N}")
_ONE_TO_THREE_DIGITS = Match(r"\p{N}{1,3}")


def _words(digits: str, contractions: str = f"{SHORT_FORMS}|", punctuation: str = _PUNCTUATION) -> Match:
    r"""The pattern of tiktoken's cl100k_base, with `digits` for \p{N}{1,3}."""
    return Match(rf"{contractions}[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}|{punctuation}|{_LINES}")


def _cased_words(digits: str, upper: str, lower: str, contractions: str) -> Match:
    """The pattern of tiktoken's o200k_base: words break where lower case turns to upper."""
    lead = r"[^\r\n\p{L}\p{N}]?"
    return Match(
        rf"{lead}[{upper}]*[{lower}]+{contractions}|{lead}[{upper}]+[{lower}]*{contractions}"
        rf"|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_LINES}"
    )


def _deepseek_words(punctuation: str) -> Match:
    ascii_punctuation = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"
    return Match(rf"{ascii_punctuation}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+{punctuation}|{_SPACES}")


def _thousands(start: int, end: int) -> range:
    """The ends of groups of three digits counted from the right; the first group has one to three."""
    return range(start + (end - start - 1) % 3 + 1, end + 1, 3)


# As in llama.cpp, nothing is cut before a run of digits, so that its first group takes along the text before it.
_GROUPED_DIGITS = MatchAndCut(r"\p{N}+", places=_thousands, boundary=r"(?<=\p{N})(?=(?:\p{N}{3})*(?!\p{N}))")
_KANA_AND_HAN = Match(r"[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+")
_CJK = Match(r"[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+")
# The cased letters of Unicode, as DeepSeek lists them.
_DEEPSEEK_LETTERS = (
    r"A-Za-z\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386"
    r"\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd"
    r"\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57"
    r"\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec"
    r"\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    r"\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b"
    r"\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f"
    r"\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_DEEPSEEK_STEPS = (_ONE_TO_THREE_DIGITS, _KANA_AND_HAN, _deepseek_words(r"[\r\n]*|\s*[\r\n]+"))
_BLOOM = Match(r" ?[^(\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+")
_FALCON_PUNCTUATION = r"[\p{P}$+<=>\^~|`]+"
# U+8C48 was meant to be U+F900, of which it is the canonical form, and U+0E40 to be U+0E00; files are made with it as it is.
_ASIAN_SCRIPTS = (
    r"[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f\u0e80-\u0eff"
    r"\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
)
_UPPER_AND_MARKS, _LOWER_AND_MARKS = UPPER + _CLASSES["M"], LOWER + _CLASSES["M"]
_ANY_LETTERS = r"\p{L}\p{M}"

_TABLE = (
    PreTokenizer(
        ("default", ""),
        (Match(r"[\p{P}$+<=>\^~|]+"), _GPT2, Match(r"\p{N}+"), Match("[0-9][0-9][0-9]")),
    ),
    PreTokenizer(
        (
            *("gpt-2", "phi-2", "jina-es", "jina-de", "gigachat", "jina-v2-es", "jina-v2-de", "a.x-4.0", "mellum", "modern-bert"),
            *("jina-v1-en", "jina-v2-code", "roberta-bpe", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4"),
        ),
        (_GPT2,),
    ),
    PreTokenizer(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"),
        (_DIGIT, _GPT2),
    ),
    PreTokenizer(
        ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
        (_words(r"\p{N}{1,3}"),),
        ignore_merges=True,
        add_bos=True,
    ),
    PreTokenizer(("dbrx", "smaug-bpe", "chatglm-bpe", "glm4"), (_words(r"\p{N}{1,3}"),)),
    PreTokenizer(
        ("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"),
        (_words(r"\p{N}"),),
    ),
    PreTokenizer(
        ("qwen35",),
        (Match(rf"{SHORT_FORMS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_LINES}"),),
    ),
    PreTokenizer(("minicpm5",), (_ONE_TO_THREE_DIGITS, _words(r"\p{N}+")), ignore_merges=True),
    PreTokenizer(("ufakzeka",), (_words(r"\p{N}", contractions=""),)),
    PreTokenizer(("laguna",), (Match(r"[^\n]+|[\n]+"), _words(r"\p{N}"))),
    PreTokenizer(("seed-coder",), (_words(r"\p{N}", punctuation=r" ?[^\s\p{L}\p{N}\r\n]+"),)),
    PreTokenizer(
        ("bailingmoe", "bailingmoe2", "llada-moe"),
        (Match(rf"{SHORT_FORMS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_PUNCTUATION}|\s*[\r\n]|{_SPACES}"),),
    ),
    PreTokenizer(
        ("exaone-moe",),
        (
            Match(
                rf"{SHORT_FORMS}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
                rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?|\s*[\r\n]|{_SPACES}"
            ),
        ),
    ),
    PreTokenizer(
        ("jais-2",),
        (
            Match(
                rf"{SHORT_FORMS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_PUNCTUATION}|\s*[\r\n]+|"
                + "|".join(rf"\s{{{count}}}(?!\S)" for count in (512, 256, 128, 64, 32, 16, 8, 4, "1,2"))
                + r"|\s"
            ),
        ),
    ),
    PreTokenizer(("tekken",), (_cased_words(r"\p{N}", UPPER, LOWER, ""),), ignore_merges=True, add_bos=True),
    PreTokenizer(
        ("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"),
        (_cased_words(r"\p{N}{1,3}", UPPER, LOWER, f"(?:{SHORT_FORMS})?"),),
    ),
    PreTokenizer(
        ("granite-embed-multi-97m",),
        (_cased_words(r"\p{N}{1,3}", _UPPER_AND_MARKS, _LOWER_AND_MARKS, f"(?:{SHORT_FORMS})?"),),
        ignore_merges=True,
    ),
    PreTokenizer(
        ("tiny_aya", "cohere2moe"),
        (
            _GROUPED_DIGITS,
            _cased_words(r"\p{N}{1,3}", _ANY_LETTERS, _ANY_LETTERS, f"(?:{SHORT_FORMS})?"),
        ),
    ),
    PreTokenizer(
        ("youtu",),
        (
            Match(
                r"[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+"
                r"|[\u3105-\u312f]+|[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
            ),
            _cased_words(r"\p{N}", _ANY_LETTERS, _ANY_LETTERS, f"(?:{SHORT_FORMS})?"),
        ),
        ignore_merges=True,
    ),
    PreTokenizer(
        ("kimi-k2",),
        (
            Match(
                rf"[{_HAN}{_UNASSIGNED_HAN}]+|[^\r\n\p{{L}}\p{{N}}{_HAN}{_UNASSIGNED_HAN}]?\p{{L}}+(?:{SHORT_FORMS})?|\p{{N}}{{1,3}}"
                rf"| ?[^\s\p{{L}}\p{{N}}{_HAN}]+[\r\n]*|{_LINES}",
                han=True,
            ),
        ),
    ),
    PreTokenizer(("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"), _DEEPSEEK_STEPS),
    PreTokenizer(("spark2_5",), (_ONE_TO_THREE_DIGITS, _KANA_AND_HAN, _deepseek_words(r"|[\r\n]"), _DIGIT)),
    PreTokenizer(
        ("deepseek-llm",),
        (
            Match(r"[\r\n]"),
            Match(rf"\s?[{_DEEPSEEK_LETTERS}]+"),
            Match(r"\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"),
            Match(r"(?<!\s)\s++\Z"),
            _CJK,
            Match(r"\p{N}+"),
        ),
    ),
    PreTokenizer(("deepseek-coder",), (Match(r"[\r\n]"), Match(r"\s?\p{L}+"), Match(r"\s?\p{P}+"), _CJK, _DIGIT)),
    PreTokenizer(
        ("afmoe",),
        (_GROUPED_DIGITS, Match(_ASIAN_SCRIPTS), _deepseek_words(r"[\r\n]*|\s*[\r\n]+")),
    ),
    PreTokenizer(("falcon",), (Match(_FALCON_PUNCTUATION), _GPT2, Match("[0-9][0-9][0-9]"))),
    PreTokenizer(("poro-chat", "bloom", "gpt3-finnish"), (_BLOOM,)),
    PreTokenizer(("viking",), (_BLOOM, _DIGIT)),
    PreTokenizer(
        ("chameleon",),
        (
            Match("<sentinel:[0-9]+>"),
            Match("IMGIMG[A-I]{1,4}Z"),
            Match(r"[\t\n]|    |  "),
            _DIGIT,
            Match(r"[\p{P}!-/:-@\[-`{-~]"),
            _GPT2,
        ),
        add_bos=True,
    ),
    PreTokenizer(
        ("superbpe",),
        (
            Match(r"\p{N}+"),
            MatchAndCut(
                r"\d+",
                places=lambda start, end: range(start + (end - start) % 3, end, 3),
                boundary=r"(?=(?:[0-9]{3})+(?![0-9]))",
            ),
        ),
    ),
    PreTokenizer(("gemma4", "granite-embed-multi-311m"), (Match(r"[^\n]+|\n+"),), add_bos=True, byte_level=False, whole_newlines=True),
    PreTokenizer(("sarvam-moe",), (Match(r"[^\n]+|\n+"),), byte_level=False),
)

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = MappingProxyType({name: row for row in _TABLE for name in row.names})


def find_pre_tokenizer(name: str) -> PreTokenizer:
    """The pre-tokenizer of this name.

    Raises:
        UnsupportedModelError: no pre-tokenizer has this name.
    """
    if name not in PRE_TOKENIZERS:
        known = ", ".join(sorted(filter(None, PRE_TOKENIZERS)))
        raise UnsupportedModelError(
            f"tokenizer.ggml.pre is {name!r:.100}, a pre-tokenizer that edgelm does not know; convert the model with one of: {known}"
        )
    return PRE_TOKENIZERS[name]
