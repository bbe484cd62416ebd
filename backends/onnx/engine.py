"""The ONNX Runtime engine: a Backend over the graphs of an exported folder, whatever their target."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgelm.backends.base import ABILITIES, DEFAULT_N_CTX, Batch, ModelInfo, Outputs, Progress
from edgelm.backends.batches import check_batch
from edgelm.backends.config import ModelConfig, read_config
from edgelm.backends.cpu.topology import choose_threads
from edgelm.backends.onnx.decoder import Decoder, Run
from edgelm.backends.onnx.options import ONNXOptions
from edgelm.backends.onnx.session import SessionSettings
from edgelm.backends.slots import Slots
from edgelm.errors import BackendUnavailableError, ClosedError, InvalidRequestError
from edgelm.quant.exported_folder import ExportedFolder
from edgelm.quant.model_file import ModelFile

_DEFAULT_PROVIDERS: Mapping[str, tuple[str, ...]] = {"cpu": ("cpu",), "qnn": ("qnn",), "nnapi": ("nnapi",)}


_NO_SAVING = "sequences cannot be saved with ONNX Runtime; choose the cpu backend"


class ONNXBackend:
    """A model in ONNX Runtime. Thread-safe: calls are serialized."""

    def __init__(
        self,
        file: ModelFile,
        *,
        n_threads: int | None = None,
        n_ctx: int | None = None,
        precision: str | None = None,
        progress: Progress | None = None,
        cache_folder: Path | None = None,
        options: ONNXOptions | None = None,
    ) -> None:
        """
        Args:
            file: an exported folder, or any other model, which is then exported for the CPU once; it is closed when its graphs are open.
            n_threads: of one operator; one per physical core unless given.
            n_ctx: tokens that one sequence may hold, at most what the folder was exported for; that number unless given.
            precision: must be the folder's, if given; of a model that is exported here, "int8" unless given.
            progress: called with a line before anything that takes long.
            cache_folder: where exports are kept; the user's cache folder unless given.
            options: providers and the like.

        Raises:
            ModelFileError: the folder or a graph is damaged, incomplete, or of another version.
            UnsupportedModelError: the model cannot be exported, or nodes fall to a provider that was not named.
            BackendUnavailableError: a provider is not there, or does not take the graphs.
            InvalidRequestError: n_ctx, the precision or an option does not fit the folder.
            InsufficientMemoryError: weights or KV cache do not fit.
        """
        options = options or ONNXOptions()
        config = read_config(file.metadata)
        folder = file if isinstance(file, ExportedFolder) else _export(file, config, n_ctx, precision, cache_folder, progress)
        manifest = folder.manifest
        if precision not in (None, manifest.precision):
            raise InvalidRequestError(
                f"precision is {precision!r}, but {folder.path} was exported with {manifest.precision!r}; leave it out, or export anew"
            )
        n_threads = n_threads or choose_threads().n_threads
        settings = _settings(options, manifest.target, n_threads)
        n_ctx = n_ctx or (manifest.n_ctx if isinstance(file, ExportedFolder) else min(config.n_ctx_train, DEFAULT_N_CTX))
        self._decoder = _open_decoder(folder, settings, n_ctx)
        self.folder = folder.path
        """Of the graphs: the exported folder that was given, or to which the model was exported."""
        file.close()
        self._slots = Slots()
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._closed = False
        self._info = ModelInfo(
            backend="onnx",
            architecture=config.architecture,
            n_vocab=self._decoder.n_vocab,
            n_embd=config.n_embd,
            n_layers=config.n_layers,
            n_ctx=self._decoder.n_ctx,
            n_ctx_train=config.n_ctx_train,
            n_threads=n_threads,
            precision=manifest.precision,
            weight_bytes=self._decoder.weight_bytes,
            bytes_per_token=self._decoder.bytes_per_token,
            kv_bytes_per_token=self._decoder.kv_bytes_per_token,
            abilities=ABILITIES - {"save"},
            providers=self._decoder.providers,
        )

    @property
    def info(self) -> ModelInfo:
        return self._info

    def forward(self, batch: Batch) -> NDArray[np.float32]:
        """Logits, as Backend.forward says."""
        return self._compute(batch, hidden=False)

    def hidden(self, batch: Batch) -> NDArray[np.float32]:
        """Final-norm hidden states, as Backend.hidden says."""
        return self._compute(batch, hidden=True)

    def length(self, sequence: int) -> int:
        with self._lock:
            return self._slots.length(sequence)

    def share(self, source: int, target: int, n_tokens: int) -> None:
        with self._lock:
            self._check_open()
            self._slots.check_share(source, target, n_tokens)
            origin = self._slots.find(source)
            slot = self._slots.claim(target)
            try:
                self._decoder.reserve(self._slots.n_spanned)
                if origin is not None and n_tokens:
                    self._decoder.copy(origin.index, slot.index, n_tokens)
            except BaseException:
                self._slots.release(target)
                raise
            slot.length = n_tokens

    def truncate(self, sequence: int, n_tokens: int) -> None:
        with self._lock:
            self._check_open()
            self._slots.check_truncate(sequence, n_tokens)
            slot = self._slots.find(sequence)
            if slot is not None:
                slot.length = n_tokens

    def save(self, sequence: int) -> list[NDArray[np.uint8]]:  # noqa: ARG002
        raise InvalidRequestError(_NO_SAVING)

    def restore(self, sequence: int, n_tokens: int, state: NDArray[np.uint8]) -> None:  # noqa: ARG002
        raise InvalidRequestError(_NO_SAVING)

    def free(self, sequence: int) -> None:
        with self._lock:
            self._slots.release(sequence)

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                self._slots.clear()
                self._decoder.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the model is closed; open it again to use it")
        if os.getpid() != self._process:  # ONNX Runtime's threads do not survive a fork; waiting for them would last for ever
            raise BackendUnavailableError("the model was opened before this process was forked off; open it anew in this process")

    def _compute(self, batch: Batch, hidden: bool) -> NDArray[np.float32]:
        """Check the whole batch, compute it, and only then count its tokens as appended."""
        with self._lock:
            self._check_open()
            check_batch(batch, self._info.n_vocab, self._info.n_ctx, self._slots.length)
            new = [chunk.sequence for chunk in batch if self._slots.find(chunk.sequence) is None]
            try:
                slots = [self._slots.claim(chunk.sequence) for chunk in batch]
                self._decoder.reserve(self._slots.n_spanned)
                runs = [
                    Run(slot.index, slot.length, np.asarray(chunk.tokens, np.int32), _rows(chunk.outputs, len(chunk.tokens)))
                    for slot, chunk in zip(slots, batch, strict=True)
                ]
                results = self._decoder.run(runs, hidden)
            except BaseException:
                for sequence in new:
                    self._slots.release(sequence)
                raise
            for slot, chunk in zip(slots, batch, strict=True):
                slot.length += len(chunk.tokens)
        if len(results) == 1:
            return results[0]
        width = self._info.n_embd if hidden else self._info.n_vocab
        return np.concatenate([rows for rows in results if len(rows)] or [np.empty((0, width), np.float32)])


def _rows(outputs: Outputs, n_tokens: int) -> NDArray[np.int64]:
    first = {Outputs.NONE: n_tokens, Outputs.LAST: n_tokens - 1, Outputs.ALL: 0}[outputs]
    return np.arange(first, n_tokens, dtype=np.int64)


def _settings(options: ONNXOptions, target: str, n_threads: int) -> SessionSettings:
    """The options as settings of a session, with what was left open decided."""
    providers = options.providers or _DEFAULT_PROVIDERS[target]
    strangers = [name for name in options.provider_options if name not in providers]
    if strangers:
        raise InvalidRequestError(
            f"options of {', '.join(strangers)} were given, but the folder was exported for {target} and runs on {', '.join(providers)}; "
            "name the provider in providers, or leave its options out"
        )
    return SessionSettings(
        n_threads=n_threads,
        providers=providers,
        provider_options=options.provider_options,
        strict=options.strict_provider,
        spinning=n_threads <= choose_threads().n_threads if options.spinning is None else options.spinning,
        profile=options.profile,
    )


def _open_decoder(folder: ExportedFolder, settings: SessionSettings, n_ctx: int) -> Decoder:
    manifest = folder.manifest
    if n_ctx > manifest.n_ctx:
        raise InvalidRequestError(
            f"n_ctx is {n_ctx}, but {folder.path} was exported for {manifest.n_ctx} tokens; ask for at most that, or export the model anew"
        )
    if manifest.target == "cpu":
        from edgelm.backends.onnx.dynamic_decoder import DynamicDecoder

        return DynamicDecoder(folder, settings, n_ctx)
    from edgelm.backends.onnx.static_decoder import StaticDecoder

    return StaticDecoder(folder, settings, n_ctx)


def _export(
    file: ModelFile, config: ModelConfig, n_ctx: int | None, precision: str | None, cache_folder: Path | None, progress: Progress | None
) -> ExportedFolder:
    """The model exported for the CPU, from the cache if it was before.

    The export holds at least the default context, so that smaller ones need no second export; but LongRoPE's rotations hang on the exact
    context.
    """
    from edgelm.backends.onnx.export import ExportOptions, cached_export

    least = min(config.n_ctx_train, DEFAULT_N_CTX)
    exact = "rope_factors_long.weight" in file.tensors
    context = n_ctx if exact else max(n_ctx or least, least)
    options = ExportOptions(target="cpu", n_ctx=context, precision=precision or "int8")
    return ExportedFolder(cached_export(file, options, _cache_folder(cache_folder), progress))


def export_folder(cache_folder: Path | None = None) -> Path:
    """Where models that were exported on the way are kept."""
    return _cache_folder(cache_folder) / "onnx"


def _cache_folder(cache_folder: Path | None) -> Path:
    from platformdirs import user_cache_dir

    return cache_folder or Path(user_cache_dir("edgelm", appauthor=False))
