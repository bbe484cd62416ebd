"""onnxruntime-genai as the peer: Microsoft's own generation loop, on the very folder that edgelm exported."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgelm.errors import BackendUnavailableError, ModelFileError


class GenAIPeer:
    """A Runner on `onnxruntime_genai.Generator`, greedy, with the folder's own configuration but for the threads.

    Args:
        path: a folder exported for the target cpu.

    Raises:
        BackendUnavailableError: onnxruntime-genai is not installed.
        ModelFileError: it does not load the folder.
    """

    def __init__(self, path: Path, n_threads: int, n_ctx: int) -> None:
        try:
            import onnxruntime_genai
        except ImportError as error:
            raise BackendUnavailableError(f"onnxruntime-genai is not installed ({error}); pip install onnxruntime-genai") from None
        if not (path / "genai_config.json").is_file():
            raise ModelFileError(
                f"onnxruntime-genai reads folders that edgelm exported for the CPU, and {path} is none: edgelm export MODEL OUT"
            )
        self._api: Any = onnxruntime_genai
        self._n_ctx = n_ctx
        threads = {"intra_op_num_threads": n_threads, "inter_op_num_threads": 1}
        try:
            config = self._api.Config(str(path))
            config.overlay(json.dumps({"model": {"decoder": {"session_options": threads}}}))
            self._model: Any = self._api.Model(config)
        except RuntimeError as error:
            raise ModelFileError(f"onnxruntime-genai cannot load {path} ({error}); export the model again") from error
        self.n_vocab: int = json.loads((path / "genai_config.json").read_text(encoding="utf-8"))["model"]["vocab_size"]
        self._generator: Any = None
        self._held: tuple[int, ...] = ()
        self._pending: int | None = None
        self.hold(())

    def hold(self, tokens: Sequence[int]) -> None:
        wanted = tuple(tokens)
        if self._generator is not None and wanted and wanted == self._held:
            self._generator.rewind_to(len(wanted))
        else:
            params = self._api.GeneratorParams(self._model)
            params.set_search_options(do_sample=False, max_length=self._n_ctx, min_length=self._n_ctx)  # no end before the context's
            self._generator = self._api.Generator(self._model, params)
            if wanted:
                self._generator.append_tokens(np.array(wanted, np.int32))
        self._held, self._pending = wanted, None

    def prefill(self, tokens: Sequence[int]) -> int:
        self._append(tokens)
        return self._next()

    def decode(self, token: int, n: int) -> Iterator[int]:
        if token != self._pending:  # the generator appends its own token itself
            self._append([token])
        for _ in range(n):
            yield self._next()

    def _append(self, tokens: Sequence[int]) -> None:
        if self._pending is not None:  # the generator took its own token for the next; others come in its place
            self._generator.rewind_to(self._generator.token_count() - 1)
        self._generator.append_tokens(np.array(tokens, np.int32))

    def _next(self) -> int:
        self._generator.generate_next_token()
        self._pending = int(self._generator.get_next_tokens()[0])
        return self._pending

    def close(self) -> None:
        self._generator = self._model = None
