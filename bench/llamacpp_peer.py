"""llama.cpp as the peer to measure against, through llama-cpp-python's low-level calls and nothing slower."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import BackendUnavailableError, ContextOverflowError, InvalidRequestError, ModelFileError

_GGML_TYPES = {"f32": 0, "f16": 1}
_FLASH_ATTENTION = {None: -1, False: 0, True: 1}
# llama.cpp keeps a pointer to its log callback, one for the whole process, so this one must live as long.
_SILENCE = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda _level, _text, _data: None)


def _load_llama_cpp() -> ModuleType:
    try:
        from llama_cpp import llama_cpp
    except ImportError as error:
        raise BackendUnavailableError(
            f"llama.cpp is not installed ({error}); install it with: pip install 'edgelm[bench]' (or: pip install llama-cpp-python)"
        ) from None
    module: ModuleType = llama_cpp
    return module


class LlamaCppPeer:
    """One model in one llama.cpp context with one sequence.

    Args:
        path: a GGUF file.
        n_threads: threads that compute, in prefill and decode alike.
        n_ctx: tokens that the context holds.
        kv_type: number format of the KV cache; "f16" is llama.cpp's default, "f32" is for comparing logits.
        flash_attention: None leaves the choice to llama.cpp, as its own programs do.

    Raises:
        BackendUnavailableError: llama-cpp-python is not installed.
        ModelFileError: llama.cpp does not load the file.
    """

    def __init__(
        self,
        path: Path,
        n_threads: int,
        n_ctx: int = 2048,
        kv_type: Literal["f16", "f32"] = "f16",
        flash_attention: bool | None = None,
    ) -> None:
        self._api: Any = _load_llama_cpp()
        self._model: Any = None
        self._context: Any = None
        self._held: tuple[int, ...] = ()
        self._api.llama_log_set(_SILENCE, None)
        self._api.llama_backend_init()
        self._model = self._api.llama_model_load_from_file(str(path).encode(), self._api.llama_model_default_params())
        if not self._model:
            raise ModelFileError(f"llama.cpp cannot load {path}; check it with: edgelm inspect {path}")
        params = self._api.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_threads = params.n_threads_batch = n_threads
        params.type_k = params.type_v = _GGML_TYPES[kv_type]
        params.flash_attn_type = _FLASH_ATTENTION[flash_attention]
        params.no_perf = True
        self._context = self._api.llama_init_from_model(self._model, params)
        if not self._context:
            self.close()
            raise ModelFileError(f"llama.cpp cannot open a context of {n_ctx} tokens on {path}; ask for fewer")
        self._vocab = self._api.llama_model_get_vocab(self._model)
        self.n_vocab: int = self._api.llama_vocab_n_tokens(self._vocab)
        self.n_ctx: int = self._api.llama_n_ctx(self._context)
        self._n_batch: int = self._api.llama_n_batch(self._context)

    def tokenize(self, text: str, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """Token ids of the text."""
        data = text.encode()
        room = len(data) + 8
        ids = (self._api.llama_token * room)()
        n = self._api.llama_tokenize(self._vocab, data, len(data), ids, room, add_special, parse_special)
        if n < 0:
            raise InvalidRequestError(f"llama.cpp needs {-n} tokens for a text of {len(data)} bytes, which is more than it should")
        return list(ids[:n])

    def hold(self, tokens: Sequence[int]) -> None:
        """Make the context hold exactly these tokens."""
        wanted = tuple(tokens)
        if not (wanted and wanted == self._held and self._remove_from(len(wanted))):
            self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)
            if wanted:
                self.prefill(wanted)
        self._held = wanted

    def logits(self, tokens: Sequence[int] | NDArray[np.int32]) -> NDArray[np.float32]:
        """Logits after each token of an empty context, float32 [n, n_vocab]."""
        self._check_room(len(tokens))
        self.hold(())
        rows = np.empty((len(tokens), self.n_vocab), np.float32)
        batch = self._api.llama_batch_init(self._n_batch, 0, 1)
        try:
            for start in range(0, len(tokens), self._n_batch):
                part = tokens[start : start + self._n_batch]
                batch.n_tokens = len(part)
                for i, token in enumerate(part):
                    batch.token[i], batch.pos[i] = int(token), start + i
                    batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
                    batch.logits[i] = 1
                self._check(self._api.llama_decode(self._context, batch))
                pointer = self._api.llama_get_logits(self._context)
                rows[start : start + len(part)] = np.ctypeslib.as_array(pointer, shape=(len(part), self.n_vocab))
        finally:
            self._api.llama_batch_free(batch)
        return rows

    def prefill(self, tokens: Sequence[int]) -> int:
        """Append the tokens; the greedy token that follows."""
        for start in range(0, len(tokens), self._n_batch):
            part = tokens[start : start + self._n_batch]
            self._decode((self._api.llama_token * len(part))(*part))
        return self._greedy()

    def decode(self, token: int, n: int) -> Iterator[int]:
        """n greedy tokens that follow the context's tokens and `token`."""
        for _ in range(n):
            self._decode((self._api.llama_token * 1)(token))
            token = self._greedy()
            yield token

    def close(self) -> None:
        """Free the context and the model. Closing twice is allowed."""
        if self._context:
            self._api.llama_free(self._context)
        if self._model:
            self._api.llama_model_free(self._model)
        self._context = self._model = None

    def _decode(self, array: Any) -> None:
        self._check(self._api.llama_decode(self._context, self._api.llama_batch_get_one(array, len(array))))

    def _greedy(self) -> int:
        """The likeliest token after the last one; asking for its logits waits for the computation."""
        return int(np.ctypeslib.as_array(self._api.llama_get_logits(self._context), shape=(self.n_vocab,)).argmax())

    def _remove_from(self, n_tokens: int) -> bool:
        """Whether everything from this place on could be removed from the KV cache."""
        return bool(self._api.llama_memory_seq_rm(self._api.llama_get_memory(self._context), 0, n_tokens, -1))

    def _check_room(self, n_tokens: int) -> None:
        if n_tokens > self.n_ctx:
            raise ContextOverflowError(n_tokens, self.n_ctx)

    def _check(self, status: int) -> None:
        if status != 0:
            raise InvalidRequestError(
                f"llama_decode failed with status {status}; status 1 means that the context of {self.n_ctx} tokens is full"
            )
