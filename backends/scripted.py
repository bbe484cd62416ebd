"""A backend without a model: its next tokens are told beforehand. For tests of everything above the border."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import RLock

import numpy as np
from numpy.typing import NDArray

from edgelm.backends.base import Batch, Chunk, ModelInfo, Outputs
from edgelm.backends.batches import check_batch
from edgelm.errors import ClosedError, InvalidRequestError

Script = Sequence[int] | Callable[[Sequence[int]], NDArray[np.float32]]
"""Tokens to say in turn after any prompt, or a function from all tokens so far to logits float32 [n_vocab]."""

_SCRIPTED_LOGIT = 20.0


class ScriptedBackend:
    """Implements Backend; says what its script says.

    A list of tokens is said one per forward call, each sequence from the beginning, after whatever prompt: the script counts
    from the first row of logits that the sequence gave. After its end the last token is said again and again.
    """

    def __init__(self, script: Script, *, n_vocab: int, n_ctx: int = 128, n_embd: int = 8, kv_bytes_per_token: int = 1) -> None:
        self.calls: list[tuple[int, int]] = []
        """(sequence, tokens) of every chunk that was computed, in order."""
        self._script = script
        self._info = ModelInfo(
            backend="scripted",
            architecture="scripted",
            n_vocab=n_vocab,
            n_embd=n_embd,
            n_layers=0,
            n_ctx=n_ctx,
            n_ctx_train=n_ctx,
            n_threads=1,
            precision="f32",
            weight_bytes=0,
            bytes_per_token=0,
            kv_bytes_per_token=kv_bytes_per_token,
        )
        self._embedding = np.random.default_rng(0).standard_normal((n_vocab, n_embd)).astype(np.float32)
        self._history: dict[int, list[int]] = {}
        self._said: dict[int, int] = {}
        self._lock = RLock()
        self._closed = False

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def sequences(self) -> frozenset[int]:
        """Sequences that hold tokens now."""
        return frozenset(self._history)

    def forward(self, batch: Batch) -> NDArray[np.float32]:
        with self._lock:
            self._check(batch)
            rows = [row for chunk in batch for row in self._append(chunk)]
        return np.stack(rows) if rows else np.empty((0, self._info.n_vocab), np.float32)

    def hidden(self, batch: Batch) -> NDArray[np.float32]:
        """Each token's own random vector, the same for the same token."""
        with self._lock:
            self._check(batch)
            rows = []
            for chunk in batch:
                self._append(Chunk(chunk.sequence, chunk.tokens, Outputs.NONE))
                rows.append(self._embedding[chunk.tokens][len(chunk.tokens) - chunk.n_outputs :])
        return np.concatenate(rows)

    def length(self, sequence: int) -> int:
        return len(self._history.get(sequence, ()))

    def share(self, source: int, target: int, n_tokens: int) -> None:
        with self._lock:
            self._check_open()
            if target in self._history or not 0 <= n_tokens <= self.length(source):
                raise InvalidRequestError(f"{n_tokens} tokens of sequence {source} cannot be shared with sequence {target}")
            self._history[target] = self._history.get(source, [])[:n_tokens]

    def truncate(self, sequence: int, n_tokens: int) -> None:
        with self._lock:
            self._check_open()
            if not 0 <= n_tokens <= self.length(sequence):
                raise InvalidRequestError(f"sequence {sequence} cannot be truncated to {n_tokens} tokens")
            del self._history.get(sequence, [])[n_tokens:]

    def save(self, sequence: int) -> list[NDArray[np.uint8]]:
        """Its tokens."""
        with self._lock:
            self._check_open()
            return [np.array(self._history.get(sequence, ()), np.int32).view(np.uint8)]

    def restore(self, sequence: int, n_tokens: int, state: NDArray[np.uint8]) -> None:
        with self._lock:
            self._check_open()
            if self.length(sequence) or state.size != 4 * n_tokens:
                raise InvalidRequestError(f"{state.size} bytes are not {n_tokens} tokens of an empty sequence")
            self._history[sequence] = state.view(np.int32).tolist()

    def free(self, sequence: int) -> None:
        with self._lock:
            self._check_open()
            self._history.pop(sequence, None)
            self._said.pop(sequence, None)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._history.clear()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the scripted backend was closed")

    def _check(self, batch: Batch) -> None:
        self._check_open()
        check_batch(batch, self._info.n_vocab, self._info.n_ctx, self.length)

    def _append(self, chunk: Chunk) -> list[NDArray[np.float32]]:
        self.calls.append((chunk.sequence, len(chunk.tokens)))
        history = self._history.setdefault(chunk.sequence, [])
        rows = []
        for i, token in enumerate(chunk.tokens.tolist()):
            history.append(token)
            if i >= len(chunk.tokens) - chunk.n_outputs:
                rows.append(self._logits(chunk.sequence, history))
        return rows

    def _logits(self, sequence: int, history: Sequence[int]) -> NDArray[np.float32]:
        if callable(self._script):
            return self._script(history).astype(np.float32)
        place = self._said.get(sequence, 0)
        self._said[sequence] = place + 1
        logits = np.zeros(self._info.n_vocab, np.float32)
        logits[self._script[min(place, len(self._script) - 1)]] = _SCRIPTED_LOGIT
        return logits
