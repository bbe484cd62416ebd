"""Text to tokens and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

from edgelm.errors import InvalidRequestError
from edgelm.quant.gguf_file import GGUFFile
from edgelm.quant.huggingface_tokenizer import TOKENIZER_JSON
from edgelm.runtime.tokenizer.ggml import ggml_tokenizer
from edgelm.runtime.tokenizer.huggingface import huggingface_tokenizer
from edgelm.runtime.tokenizer.parts import TokenizerParts
from edgelm.runtime.tokenizer.utf8 import to_bytes


class Tokenizer:
    """The tokenizer of one model. Several threads may use it at once.

    Tokens are those that llama.cpp gives for the same GGUF file, or that Hugging Face's library gives for the same tokenizer.json.

    Attributes:
        n_vocab: how many tokens there are.
        bos_id, eos_id: the tokens that begin and end a text; None where the model has none.
        eog_ids: all tokens with which the model may end its answer.
        add_bos, add_eos: whether `encode(..., add_special=True)` puts something before, or after the text.
    """

    def __init__(self, parts: TokenizerParts) -> None:
        self._parts = parts
        self._vocabulary = parts.vocabulary
        self.n_vocab = len(parts.vocabulary.texts)
        self.bos_id = parts.endings.bos_id
        self.eos_id = parts.endings.eos_id
        self.eog_ids = parts.endings.eog_ids
        self.add_bos = bool(parts.before)
        self.add_eos = bool(parts.after)

    @classmethod
    def from_gguf(cls, path: str | Path) -> Tokenizer:
        """The tokenizer in a GGUF file.

        Raises:
            ModelFileError: no sound GGUF file, or its vocabulary contradicts itself.
            UnsupportedModelError: a kind of tokenizer that edgelm does not know.
        """
        with GGUFFile(path) as file:
            return cls.from_metadata(file.metadata)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """The tokenizer that a model file's metadata describes.

        Args:
            metadata: has either tokenizer.ggml.* keys, or edgelm.tokenizer.json: the path of such a file.

        Raises:
            ModelFileError: keys are missing or contradict each other.
            UnsupportedModelError: a kind of tokenizer that edgelm does not know.
        """
        path = metadata.get(TOKENIZER_JSON)
        return cls(ggml_tokenizer(metadata)) if path is None else cls.from_tokenizer_json(path, metadata)

    @classmethod
    def from_tokenizer_json(cls, path: str | Path, metadata: Mapping[str, Any] | None = None) -> Tokenizer:
        """The tokenizer in a Hugging Face tokenizer.json.

        Args:
            path: the file.
            metadata: what the file does not say: tokenizer.ggml.bos_token_id and eos_token_id, edgelm.eos_token_ids (all that end an
                answer), and the architecture's vocab_size, which may be padded.

        Raises:
            ModelFileError: missing, or damaged.
            UnsupportedModelError: a kind of tokenizer that edgelm does not know.
        """
        return cls(huggingface_tokenizer(Path(path), metadata or {}))

    def encode(self, text: str | bytes, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """Tokens of a text.

        Args:
            text: bytes need not be valid UTF-8; nor need a str be free of surrogates.
            add_special: put the tokens around it with which the model expects a text to begin and end.
            parse_special: take "<|im_end|>" and its like for the control tokens that they name; otherwise for plain text. Switch it off for
                text from strangers.

        Raises:
            InvalidRequestError: neither str nor bytes.
        """
        tokens = self._parts.encode(to_bytes(text), parse_special)
        return [*self._parts.before, *tokens, *self._parts.after] if add_special else tokens

    def decode(self, tokens: Iterable[int], skip_special: bool = False) -> str:
        """Text of the tokens. Bytes that are no UTF-8 become U+FFFD, and the space that encoding put before the text is taken away.

        Raises:
            InvalidRequestError: a token is not in the vocabulary.
        """
        pieces: list[bytes] = []
        at_start = self._parts.space_prefix
        for token in tokens:
            special, piece = self.is_special(token), self._vocabulary.token_bytes(token)
            pieces.append(piece.removeprefix(b" ") if at_start and not special else b"" if special and skip_special else piece)
            at_start = self._parts.space_prefix and special
        return b"".join(pieces).decode("utf-8", "replace")

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        """The bytes of the tokens, one after the other.

        Raises:
            InvalidRequestError: a token is not in the vocabulary.
        """
        return b"".join(map(self.token_bytes, tokens))

    def token_bytes(self, token: int) -> bytes:
        """What one token adds to the text: any bytes, perhaps part of a character. Special tokens give their name.

        Raises:
            InvalidRequestError: the token is not in the vocabulary.
        """
        return self._vocabulary.token_bytes(self._checked(token))

    def token_text(self, token: int) -> str:
        """The token as the model file spells it ("Ġthe", "▁the", "<0x0A>").

        Raises:
            InvalidRequestError: the token is not in the vocabulary.
        """
        return self._vocabulary.texts[self._checked(token)]

    def is_special(self, token: int) -> bool:
        """Whether the token stands for no text, as "<|im_end|>" does.

        Raises:
            InvalidRequestError: the token is not in the vocabulary.
        """
        return self._vocabulary.is_special(self._checked(token))

    def _checked(self, token: int) -> int:
        if not isinstance(token, Integral) or not 0 <= token < self.n_vocab:
            raise InvalidRequestError(f"token {token!r:.60} is not in the vocabulary; tokens are 0 to {self.n_vocab - 1}")
        return token
