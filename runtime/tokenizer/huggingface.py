"""A tokenizer.json as Hugging Face's `tokenizers` library writes it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from tokenizers import Tokenizer as RustTokenizer

from edgelm.errors import ModelFileError, UnsupportedModelError
from edgelm.quant.huggingface_tokenizer import EOS_TOKEN_IDS
from edgelm.runtime.tokenizer.endings import find_special_tokens
from edgelm.runtime.tokenizer.parts import TokenizerParts
from edgelm.runtime.tokenizer.utf8 import decode_leniently
from edgelm.runtime.tokenizer.vocabulary import SPACE_MARK, Kind, Vocabulary

_SURROGATE = re.compile("[\ud800-\udfff]")
_BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")
_PROBE = "a"


def _load(path: Path) -> RustTokenizer:
    try:
        return RustTokenizer.from_buffer(path.read_bytes())
    except OSError as error:
        raise ModelFileError(f"{path}: the tokenizer cannot be read ({error.strerror}); fetch the model again") from error
    except ValueError as error:
        raise ModelFileError(f"{path}: not a tokenizer.json that the tokenizers library reads ({error}); fetch the model again") from error


class HuggingFaceEncoder:
    """Text to tokens with the file's own rules, special tokens within the text included."""

    def __init__(self, tokenizer: RustTokenizer) -> None:
        self._tokenizer = tokenizer
        # Whether special tokens are parsed is a setting of the object, not of the call.
        self._lock = Lock()

    def __call__(self, text: bytes, parse_special: bool) -> list[int]:
        """Tokens of the text; bytes that are not UTF-8 count as U+FFFD."""
        valid = _SURROGATE.sub("\ufffd", decode_leniently(text))
        with self._lock:
            self._tokenizer.encode_special_tokens = not parse_special
            tokens: list[int] = self._tokenizer.encode(valid, add_special_tokens=False).ids
        return tokens

    def additions(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The tokens that the file's post-processor puts before and after a text."""
        plain = self._tokenizer.encode(_PROBE, add_special_tokens=False).ids
        whole = self._tokenizer.encode(_PROBE, add_special_tokens=True).ids
        starts = (at for at in range(len(whole) - len(plain) + 1) if whole[at : at + len(plain)] == plain)
        at = next(starts, 0)
        return tuple(whole[:at]), tuple(whole[at + len(plain) :])

    def adds_space(self) -> bool:
        """Whether a space is put before the text."""
        tokens = self._tokenizer.encode(_PROBE, add_special_tokens=False).tokens
        return bool(tokens) and tokens[0].startswith(SPACE_MARK)


def huggingface_tokenizer(path: Path, metadata: Mapping[str, Any]) -> TokenizerParts:
    """The tokenizer in a tokenizer.json; the metadata says what the file does not (see Tokenizer.from_tokenizer_json).

    Raises:
        ModelFileError: missing, or damaged.
        UnsupportedModelError: a decoder of a kind that edgelm does not know.
    """
    tokenizer = _load(path)
    encoder = HuggingFaceEncoder(tokenizer)
    vocabulary, endings = find_special_tokens(_vocabulary(tokenizer, metadata), metadata, None, None)
    others = {token for token in metadata.get(EOS_TOKEN_IDS, ()) if 0 <= token < len(vocabulary.texts)}
    before, after = encoder.additions()
    return TokenizerParts(
        vocabulary,
        encoder,
        replace(endings, eog_ids=endings.eog_ids | others),
        before=_addition(metadata.get("tokenizer.ggml.add_bos_token"), before, endings.bos_id),
        after=_addition(metadata.get("tokenizer.ggml.add_eos_token"), after, endings.eos_id),
        space_prefix=not vocabulary.byte_level and encoder.adds_space(),
    )


def _addition(said: bool | None, found: tuple[int, ...], token: int | None) -> tuple[int, ...]:
    """Tokens to put at one end of a text: as was said, or as the post-processor does."""
    if said is None or (said and found):
        return found
    return (token,) if said and token is not None else ()


def _vocabulary(tokenizer: RustTokenizer, metadata: Mapping[str, Any]) -> Vocabulary:
    decoder = json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder else {}
    kinds_of_decoder = set(_types(decoder))
    if not kinds_of_decoder & {"ByteLevel", "ByteFallback", "Metaspace"}:
        found = ", ".join(sorted(kinds_of_decoder)) or "none"
        raise UnsupportedModelError(
            f"the tokenizer.json has a decoder of the kind {found}; edgelm knows ByteLevel, ByteFallback and Metaspace"
        )
    ids = tokenizer.get_vocab(with_added_tokens=True)
    # Models may have more rows than the tokenizer has tokens.
    padded = metadata.get(f"{metadata.get('general.architecture')}.vocab_size", 0)
    texts = [""] * max(padded, max(ids.values(), default=-1) + 1)
    for text, token in ids.items():
        texts[token] = text
    byte_level = "ByteLevel" in kinds_of_decoder
    kinds = np.array([_kind(text, byte_level) for text in texts], np.uint8)
    for token, added in tokenizer.get_added_tokens_decoder().items():
        kinds[token] = Kind.CONTROL if added.special else Kind.USER_DEFINED
    return Vocabulary(texts, kinds, byte_level, ids)


def _kind(text: str, byte_level: bool) -> Kind:
    if not text:
        return Kind.UNUSED
    return Kind.BYTE if not byte_level and _BYTE_TOKEN.fullmatch(text) else Kind.NORMAL


def _types(decoder: Any) -> Iterator[str]:
    """The kinds of decoder in a description, which may be nested."""
    if isinstance(decoder, dict):
        if isinstance(decoder.get("type"), str):
            yield decoder["type"]
        for value in decoder.values():
            yield from _types(value)
    elif isinstance(decoder, list):
        for value in decoder:
            yield from _types(value)
