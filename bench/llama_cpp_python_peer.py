"""llama-cpp-python's own loop as the peer: its `Llama` class evaluates and samples, as its users call it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from edgelm.errors import BackendUnavailableError, ModelFileError


class LlamaCppPythonPeer:
    """A Runner on `llama_cpp.Llama` with its defaults.

    Raises:
        BackendUnavailableError: llama-cpp-python is not installed.
        ModelFileError: it does not load the file.
    """

    def __init__(self, path: Path, n_threads: int, n_ctx: int) -> None:
        try:
            from llama_cpp import Llama
        except ImportError as error:
            raise BackendUnavailableError(f"llama-cpp-python is not installed ({error}); pip install 'edgelm[bench]'") from None
        try:
            self._llama: Any = Llama(str(path), n_ctx=n_ctx, n_threads=n_threads, n_threads_batch=n_threads, verbose=False)
        except (ValueError, RuntimeError) as error:
            raise ModelFileError(f"llama-cpp-python cannot load {path} ({error}); check it with: edgelm inspect {path}") from error
        self.n_vocab: int = self._llama.n_vocab()
        self._held: tuple[int, ...] = ()

    def hold(self, tokens: Sequence[int]) -> None:
        wanted = tuple(tokens)
        if wanted and wanted == self._held:
            self._llama.n_tokens = len(wanted)  # eval takes what lies beyond out of the KV cache
            return
        self._llama.reset()
        if wanted:
            self._llama.eval(list(wanted))
        self._held = wanted

    def prefill(self, tokens: Sequence[int]) -> int:
        self._llama.eval(list(tokens))
        return int(self._llama.sample(temp=0.0))

    def decode(self, token: int, n: int) -> Iterator[int]:
        yield from islice(self._llama.generate([token], temp=0.0, reset=False), n)

    def close(self) -> None:
        self._llama.close()
