"""The vocabulary part of llama.cpp, as the oracle for tokenizers, and small GGUF files that hold nothing but a vocabulary."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import llama_cpp

# Kept alive here, as llama.cpp goes on calling it.
_SILENT = llama_cpp.llama_log_callback(lambda *_: None)
# Beyond U+10FFFF; llama.cpp aborts the process on it.
_TOO_LARGE = re.compile(rb"\xf4[\x90-\xbf][\x80-\xbf]{2}|[\xf5-\xf7][\x80-\xbf]{3}")


class LlamaVocab:
    """llama.cpp's tokenizer of a GGUF file."""

    def __init__(self, path: Path) -> None:
        llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p(0))
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(self._vocab)

    def close(self) -> None:
        llama_cpp.llama_model_free(self._model)

    def encode(self, text: str | bytes, add_special: bool = False, parse_special: bool = True) -> list[int]:
        data = text.encode() if isinstance(text, str) else text
        # A byte that is no UTF-8 may become three tokens.
        room = (ctypes.c_int32 * (3 * len(data) + 16))()
        count = llama_cpp.llama_tokenize(self._vocab, data, len(data), room, len(room), add_special, parse_special)
        if count < 0:
            raise RuntimeError(f"llama.cpp has {-count} tokens for {len(data)} bytes")
        return list(room[:count])

    def token_bytes(self, token: int) -> bytes:
        room = ctypes.create_string_buffer(1024)
        count = llama_cpp.llama_token_to_piece(self._vocab, token, room, len(room), 0, True)
        return room.raw[:count]

    def end_of_generation(self) -> set[int]:
        return {token for token in range(self.n_vocab) if llama_cpp.llama_vocab_is_eog(self._vocab, token)}


@contextmanager
def llama_vocab(path: Path) -> Iterator[LlamaVocab]:
    vocab = LlamaVocab(path)
    try:
        yield vocab
    finally:
        vocab.close()


def llama_survives(data: bytes) -> bool:
    """Whether llama.cpp can tokenize the bytes without aborting."""
    return not _TOO_LARGE.search(data)


def write_vocabulary(path: Path, model: str, tokens: Sequence[str], types: Sequence[int], **keys: Any) -> Path:
    """A GGUF file without tensors. `keys`: merges, scores, general_name, or names under tokenizer.ggml."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_token_list(list(tokens))
    writer.add_token_types(list(types))
    for name, value in keys.items():
        if name == "merges":
            writer.add_token_merges([f"{left} {right}" for left, right in value])
        elif name == "scores":
            writer.add_token_scores(value)
        elif name == "general_name":
            writer.add_name(value)
        elif isinstance(value, bool):
            writer.add_bool(f"tokenizer.ggml.{name}", value)
        elif isinstance(value, int):
            writer.add_uint32(f"tokenizer.ggml.{name}", value)
        else:
            writer.add_string(f"tokenizer.ggml.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
