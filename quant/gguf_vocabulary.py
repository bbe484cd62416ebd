"""The vocabulary of a tokenizer.json under the tokenizer.ggml.* keys of GGUF, as llama.cpp reads them.

Byte-level BPE keeps its merges; the regex that cuts text into words goes by one of llama.cpp's names. A vocabulary that came from
SentencePiece gets scores instead: llama.cpp merges the pair whose union has the highest score, tokenizer.json the pair of lowest rank, so
that a token's score is the negative rank of its merges. Where the two would not merge alike, an error is raised.
Sources: convert_hf_to_gguf.py and src/llama-vocab.cpp of llama.cpp, convert_slow_tokenizer.py of transformers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from edgelm.errors import ModelFileError, UnsupportedModelError
from edgelm.quant.json_file import JsonObject

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # llama_token_type

_ADDED_SCORE = -1000.0
_SPACE_MARK = "▁"
_BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")
# Added tokens that are control tokens, whatever the file says (does_token_look_special of convert_hf_to_gguf.py).
_CONTROL_LOOK = re.compile(r"<\|.*\|>|<｜.*｜>|<unused.*>|<pad>|<mask>|<2mass>|\[@BOS@\]", re.DOTALL)

# -- pre-tokenizers --------------------------------------------------------------------------------------------------------------------

_DIGITS = "individual digits"
_GPT2 = "GPT-2's words"
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_ENDINGS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CL100K = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_ENDINGS}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_ENDINGS}"
)

# What cuts the text, one after the other: llama.cpp's name of it, and its name where words that are tokens are taken whole.
_PRE_TOKENIZERS: Mapping[tuple[str, ...], tuple[str, str]] = MappingProxyType(
    {
        (_GPT2,): ("gpt-2", ""),
        (_DIGITS, _GPT2): ("smollm", ""),
        (_CL100K,): ("dbrx", "llama-bpe"),
        (_CL100K.replace("{1,3}", ""),): ("qwen2", ""),
        (_O200K,): ("gpt-4o", ""),
        # Its merges reach every word that is a token, so that the two ways agree.
        (_O200K.replace("{1,3}", "").replace(f"{_CONTRACTIONS}?", ""),): ("tekken", "tekken"),
    }
)
# Other spellings of the same: whole patterns, and parts of them.
_PATTERNS = MappingProxyType(
    {r"\p{N}": _DIGITS, r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": _GPT2},
)
_SPELLINGS = (
    ("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", _CONTRACTIONS),
    ("(?:'s|'t|'re|'ve|'m|'ll|'d)", _CONTRACTIONS),
)


def read_vocabulary(path: Path, n_vocab: int) -> dict[str, Any]:
    """tokenizer.ggml.model, pre, tokens, token_type, merges or scores, and add_space_prefix.

    Args:
        path: the tokenizer.json.
        n_vocab: rows of the embedding; what has no token is filled with unused ones.

    Raises:
        ModelFileError: the file cannot be read, or contradicts itself or n_vocab.
        UnsupportedModelError: a tokenizer that llama.cpp would not run as this file says.
    """
    tokenizer = JsonObject.read(path)
    model = tokenizer.object("model")
    if (kind := model.text("type", "BPE")) != "BPE":
        raise _unsupported(tokenizer, f"a model of the kind {kind!r}")
    tokens, types = _tokens(tokenizer, n_vocab)
    if any(step.get("type") == "ByteLevel" for step in _sequence(tokenizer, "pre_tokenizer", "pretokenizers")):
        return _byte_level(tokenizer, tokens, types)
    return _sentence_piece(tokenizer, tokens, types)


def _unsupported(tokenizer: JsonObject, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"{tokenizer.where}: {what} cannot be written to GGUF; start from a GGUF file of this model")


# -- tokens ----------------------------------------------------------------------------------------------------------------------------


def _tokens(tokenizer: JsonObject, n_vocab: int) -> tuple[list[str], list[int]]:
    """Text and type of every token; unused ones where the file has none."""
    texts: dict[int, str] = {}
    vocabulary = tokenizer.object("model").object("vocab")
    for text in vocabulary.values:
        token = vocabulary.integer(text)
        if texts.setdefault(token, text) != text:
            raise ModelFileError(f"{vocabulary.where}: {texts[token]!r:.60} and {text!r:.60} are both token {token}; fetch the file again")
    types = {token: BYTE if _BYTE_TOKEN.fullmatch(text) else NORMAL for token, text in texts.items()}
    unknown = tokenizer.object("model").text("unk_token", None)
    types |= {token: UNKNOWN for token, text in texts.items() if text == unknown}
    for added in _objects(tokenizer, "added_tokens"):
        token, text = added.integer("id"), added.text("content")
        control = added.truth("special", False) or _CONTROL_LOOK.fullmatch(text) is not None
        types[token] = CONTROL if control else USER_DEFINED
        # llama.cpp finds them in the text as it is, before spaces are marked.
        texts[token] = text if control else text.replace(_SPACE_MARK, " ")
    largest = max(texts, default=-1)
    if largest >= n_vocab:
        raise ModelFileError(f"{tokenizer.where}: token {largest} is beyond the {n_vocab} rows of the embedding; fetch the folder again")
    padded = [texts.get(token, f"[PAD{token}]") for token in range(n_vocab)]
    if len(set(padded)) < n_vocab:
        raise ModelFileError(f"{tokenizer.where}: two tokens have the same text; fetch the file again")
    return padded, [types.get(token, UNUSED) for token in range(n_vocab)]


def _keys(model: str, pre: str, tokens: list[str], types: list[int]) -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": model,
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
    }


def _merges(tokenizer: JsonObject) -> list[tuple[str, str]]:
    """Pairs in the order of their ranks; older files have them as one text with a space."""
    model = tokenizer.object("model")
    entries = model.values.get("merges")
    if not isinstance(entries, list):
        raise model.fail("merges", "a list of pairs")
    pairs = []
    for entry in entries:
        pair = entry.split(" ") if isinstance(entry, str) else entry
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise ModelFileError(f"{model.where}: the merge {entry!r:.60} is not a pair of texts; fetch the file again")
        pairs.append((pair[0], pair[1]))
    return pairs


# -- byte-level BPE --------------------------------------------------------------------------------------------------------------------


def _byte_level(tokenizer: JsonObject, tokens: list[str], types: list[int]) -> dict[str, Any]:
    for normalizer in _sequence(tokenizer, "normalizer", "normalizers"):
        if normalizer.get("type") != "NFC":  # llama.cpp leaves it out
            raise _unsupported(tokenizer, f"the normalizer {normalizer.get('type')!r:.60}")
    merges = _merges(tokenizer)
    if any(" " in part for pair in merges for part in pair):
        raise _unsupported(tokenizer, "a merge with a space in it")
    # A token that only looks like <0x0A> is a plain one here.
    types = [NORMAL if kind == BYTE else kind for kind in types]
    keys = _keys("gpt2", _pre_tokenizer(tokenizer), tokens, types)
    return keys | {"tokenizer.ggml.merges": [f"{left} {right}" for left, right in merges]}


def _pre_tokenizer(tokenizer: JsonObject) -> str:
    steps = []
    for step in _sequence(tokenizer, "pre_tokenizer", "pretokenizers"):
        kind = step.get("type")
        if kind == "Digits" and step.get("individual_digits") is True:
            steps.append(_DIGITS)
        elif kind == "Split" and (step.get("behavior"), bool(step.get("invert"))) in (("Isolated", False), ("Removed", True)):
            steps.append(_spelled(step.get("pattern")))
        elif kind == "ByteLevel" and not step.get("add_prefix_space"):
            steps += [_GPT2] if step.get("use_regex", True) else []
        else:
            raise _unsupported(tokenizer, f"the pre-tokenizer {step!r:.200}")
    plain, whole = _PRE_TOKENIZERS.get(tuple(steps), ("", ""))
    name = whole if tokenizer.object("model").truth("ignore_merges", False) else plain
    if not name:
        raise _unsupported(tokenizer, f"a pre-tokenizer that cuts text by {' and then by '.join(steps)!r:.300}")
    return name


def _spelled(pattern: object) -> str:
    text = pattern.get("Regex") if isinstance(pattern, Mapping) else None
    if not isinstance(text, str):
        return repr(pattern)
    for other, ours in _SPELLINGS:
        text = text.replace(other, ours)
    return _PATTERNS.get(text, text)


# -- SentencePiece ---------------------------------------------------------------------------------------------------------------------


def _sentence_piece(tokenizer: JsonObject, tokens: list[str], types: list[int]) -> dict[str, Any]:
    has_bytes = {text.upper() for text, kind in zip(tokens, types, strict=True) if kind == BYTE}
    if not tokenizer.object("model").truth("byte_fallback", False) or len(has_bytes) < 256:
        raise _unsupported(tokenizer, "a vocabulary that is neither byte-level nor has a token for every byte")
    prefix = _space_prefix(tokenizer)
    keys = _keys("llama", "default", tokens, types)
    return keys | {"tokenizer.ggml.scores": _scores(tokenizer, tokens, types), "tokenizer.ggml.add_space_prefix": prefix}


def _space_prefix(tokenizer: JsonObject) -> bool:
    """Whether a space is put before the text. The steps must mark spaces and do nothing else."""
    prefix = marked = False
    for step in _sequence(tokenizer, "normalizer", "normalizers"):
        if step == {"type": "Prepend", "prepend": _SPACE_MARK}:
            prefix = True
        elif step == {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE_MARK}:
            marked = True
        else:
            raise _unsupported(tokenizer, f"the normalizer {step!r:.200}")
    for step in _sequence(tokenizer, "pre_tokenizer", "pretokenizers"):
        if step.get("type") == "Metaspace" and step.get("split") is False and step.get("replacement") == _SPACE_MARK:
            prefix, marked = prefix or step.get("prepend_scheme") != "never", True
        elif not (marked and step.get("type") == "Split" and step.get("pattern") == {"String": " "}):  # which then finds nothing
            raise _unsupported(tokenizer, f"the pre-tokenizer {step!r:.200}")
    if not marked:
        raise _unsupported(tokenizer, f"a vocabulary without {_SPACE_MARK} for spaces")
    return prefix


def _scores(tokenizer: JsonObject, tokens: Sequence[str], types: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """float32 [n_vocab]: the negative rank of each token's merges, which must not be mixed with those of other tokens."""
    plain = {text: token for token, (text, kind) in enumerate(zip(tokens, types, strict=True)) if kind == NORMAL}
    merges = _merges(tokenizer)
    ranks: dict[str, int] = {}
    last = ""
    for left, right in merges:
        union = left + right
        if union != last and union in plain:
            if union in ranks:
                raise _unsupported(tokenizer, f"merges to {union!r:.60} that others come between")
            ranks[union], last = len(ranks), union
    known = set(merges)
    for text in plain:
        for pair in _pairs(text, plain):
            if pair not in known:
                raise _unsupported(tokenizer, f"a vocabulary in which {pair[0]!r:.60} and {pair[1]!r:.60} are not merged")
    scores = np.full(len(tokens), _ADDED_SCORE, np.float32)
    scores[[token for token, kind in enumerate(types) if kind == BYTE]] = 0
    for text, token in plain.items():
        scores[token] = -ranks.get(text, len(ranks))
    return scores


def _pairs(text: str, plain: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """All ways to put the text together from two tokens."""
    for at in range(1, len(text)):
        left, right = text[:at], text[at:]
        if (left in plain or at == 1) and (right in plain or len(right) == 1):
            yield left, right


# -- parts of the file -----------------------------------------------------------------------------------------------------------------


def _objects(parent: JsonObject, key: str) -> list[JsonObject]:
    entries = parent.values.get(key) or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise parent.fail(key, "a list of objects")
    return [JsonObject(entry, f"{parent.where} ({key})") for entry in entries]


def _sequence(tokenizer: JsonObject, key: str, inner: str) -> list[Mapping[str, Any]]:
    """The steps under a key: none, one, or those of a Sequence."""
    step = tokenizer.object(key)
    if step.values.get("type") == "Sequence":
        return [entry.values for entry in _objects(step, inner)]
    return [step.values] if step.values else []
