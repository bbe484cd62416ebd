"""The CPU engine: a Backend whose forward pass is one call into compiled code per batch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from edgelm.backends.base import DEFAULT_N_CTX, Batch, ModelInfo, Outputs, Progress
from edgelm.backends.batches import check_batch
from edgelm.backends.config import ModelConfig, read_config
from edgelm.backends.cpu.crew import CrewSize
from edgelm.backends.cpu.forward import ForwardPass, activation_floats, kernel_names, kv_type
from edgelm.backends.cpu.kernel_cache import KernelCache
from edgelm.backends.cpu.kv_cache import KVCache, Sequence
from edgelm.backends.cpu.packed_weights import pack_weights, weight_bytes
from edgelm.backends.cpu.records import JOB, JOB_SLOTS, MAX_SPLITS, PAGE, TILE_ROWS
from edgelm.backends.cpu.team import TEAM_KERNELS, ThreadTeam
from edgelm.backends.cpu.topology import choose_threads
from edgelm.backends.memory import require_memory
from edgelm.backends.rope import rope_tables
from edgelm.backends.weights import ModelTensors, read_tensors
from edgelm.errors import ClosedError, UnsupportedModelError
from edgelm.quant.model_file import ModelFile
from edgelm.quant.pack_rows import padded_rows

_N_BATCH = 512  # tokens per run: more gain nothing, as weights are then read from the cache


@dataclass(frozen=True)
class _Run:
    """Some tokens of one sequence within a batch: [first, first + count) of the chunk's tokens."""

    sequence: Sequence
    tokens: NDArray[np.int32]
    position: int
    outputs: NDArray[np.int32]  # of these tokens, which give outputs, counted from the first


class CPUBackend:
    """A model on the CPU. Thread-safe: calls are serialized."""

    def __init__(
        self,
        file: ModelFile,
        *,
        n_threads: int | None = None,
        n_ctx: int | None = None,
        precision: str | None = None,
        progress: Progress | None = None,
        cache_folder: Path | None = None,
    ) -> None:
        """
        Args:
            file: the model; it is closed once its weights are packed.
            n_threads: one per physical core unless given.
            n_ctx: tokens that one sequence may hold; the model's own context, at most DEFAULT_N_CTX, unless given.
            precision: "int8" (unless given) quantizes activations per 32 channels; "f32" does not.
            progress: called with a line before anything that takes long.
            cache_folder: where compiled kernels are kept; the user's cache folder unless given.

        Raises:
            ModelFileError, UnsupportedModelError: the model cannot be run.
            InsufficientMemoryError: weights and KV cache do not fit.
        """
        progress = progress or (lambda _line: None)
        precision = precision or "int8"
        config = self._config = read_config(file.metadata)
        tensors = read_tensors(file, config)
        _check_head(config)
        n_ctx = n_ctx or min(config.n_ctx_train, DEFAULT_N_CTX)
        n_threads = n_threads or choose_threads().n_threads
        width = 4 if kv_type(precision) == "f32" else 2
        kv_bytes = 2 * config.n_layers * config.n_kv_heads * config.head_dim * width
        require_memory(weight_bytes(tensors) + n_ctx * kv_bytes, f"{file.path.name} with a context of {n_ctx} tokens")
        weights = pack_weights(tensors, config, file)
        kernels = KernelCache(kernel_folder(cache_folder), progress=progress)
        kernels.load({*kernel_names(config, weights, precision), *TEAM_KERNELS})
        self._tables = _rotary_tables(config, tensors, n_ctx)
        addresses = tuple(0 if table is None else table.ctypes.data for table in self._tables)
        file.close()
        n_batch = min(_N_BATCH, padded_rows(n_ctx))
        self._tape = ForwardPass(config, weights, addresses, precision, n_batch, n_ctx, n_threads, kernels.address).write()
        self._kernels = kernels
        self._n_batch = n_batch
        self._tile_tokens = max(1, TILE_ROWS // (config.n_heads // config.n_kv_heads))
        self._team = ThreadTeam(n_threads, kernels)
        self._crew = CrewSize(n_threads)
        self._cache = KVCache(PAGE * kv_bytes, n_ctx)
        self._lock = threading.Lock()
        self._closed = False
        self._info = ModelInfo(
            backend="cpu",
            architecture=config.architecture,
            n_vocab=weights.embedding.n_out,
            n_embd=config.n_embd,
            n_layers=config.n_layers,
            n_ctx=n_ctx,
            n_ctx_train=config.n_ctx_train,
            n_threads=n_threads,
            precision=precision,
            weight_bytes=weights.n_bytes,
            bytes_per_token=weights.bytes_per_token,
            kv_bytes_per_token=kv_bytes,
        )

    @property
    def info(self) -> ModelInfo:
        return self._info

    def forward(self, batch: Batch) -> NDArray[np.float32]:
        """Logits, as Backend.forward says."""
        c = self._config
        n_vocab = self._info.n_vocab
        with self._lock:
            runs, n_outputs = self._begin(batch)
            # a tile of tokens may write some rows beyond the last
            logits = np.empty((n_outputs + 4, padded_rows(n_vocab)), np.float32)
            done = 0
            for part in _parts(runs, self._n_batch):
                done += self._run(part, len(self._tape.operations), logits[done:])
        result = logits[:n_outputs, :n_vocab]
        if c.logit_scale != 1.0:
            result *= np.float32(c.logit_scale)
        if c.logit_softcap:
            result = np.tanh(result / np.float32(c.logit_softcap)) * np.float32(c.logit_softcap)
        return result

    def hidden(self, batch: Batch) -> NDArray[np.float32]:
        """Final-norm hidden states, as Backend.hidden says."""
        n_embd = self._config.n_embd
        with self._lock:
            runs, n_outputs = self._begin(batch)
            states = np.empty((n_outputs, n_embd), np.float32)
            done = 0
            for part in _parts(runs, self._n_batch):
                n = self._run(part, self._tape.n_hidden_end, None)
                for row in range(n):
                    states[done + row] = self._tape.final.row(row, n_embd, activation_floats(n_embd))
                done += n
        return states

    def length(self, sequence: int) -> int:
        with self._lock:
            return self._cache.length(sequence)

    def share(self, source: int, target: int, n_tokens: int) -> None:
        with self._lock:
            self._check_open()
            self._cache.share(source, target, n_tokens)

    def truncate(self, sequence: int, n_tokens: int) -> None:
        with self._lock:
            self._check_open()
            self._cache.truncate(sequence, n_tokens)

    def save(self, sequence: int) -> list[NDArray[np.uint8]]:
        with self._lock:
            self._check_open()
            return self._cache.save(sequence)

    def restore(self, sequence: int, n_tokens: int, state: NDArray[np.uint8]) -> None:
        with self._lock:
            self._check_open()
            self._cache.restore(sequence, n_tokens, state)

    def free(self, sequence: int) -> None:
        with self._lock:
            self._cache.free(sequence)

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._team.close()
            self._cache.clear()
            del self._tape, self._kernels, self._tables

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the model is closed; open it again to use it")

    def _begin(self, batch: Batch) -> tuple[list[_Run], int]:
        """Check the whole batch and reserve its positions before anything is computed."""
        self._check_open()
        check_batch(batch, self._info.n_vocab, self._info.n_ctx, self._cache.length)
        runs = []
        for chunk in batch:
            sequence = self._cache.reserve(chunk.sequence, len(chunk.tokens))
            n = len(chunk.tokens)
            outputs = {Outputs.NONE: [], Outputs.LAST: [n - 1], Outputs.ALL: range(n)}[chunk.outputs]
            runs.append(_Run(sequence, np.asarray(chunk.tokens, np.int32), sequence.length, np.array(outputs, np.int32)))
        return runs, sum(chunk.n_outputs for chunk in batch)

    def _run(self, runs: list[_Run], n_ops: int, logits: NDArray[np.float32] | None) -> int:
        """Compute some tokens; how many rows of outputs they gave."""
        tokens = np.concatenate([run.tokens for run in runs])
        positions = np.concatenate([np.arange(run.position, run.position + len(run.tokens), dtype=np.int32) for run in runs])
        starts = np.cumsum([0, *(len(run.tokens) for run in runs)])
        pages = np.concatenate([run.sequence.table[np.arange(run.position, run.position + len(run.tokens)) // PAGE] for run in runs])
        output_rows = np.concatenate([run.outputs + start for run, start in zip(runs, starts, strict=False)]).astype(np.int32)
        tiles = np.array(
            [
                (start + i, min(self._tile_tokens, len(run.tokens) - i), run.position + i, run.sequence.table.ctypes.data)
                for run, start in zip(runs, starts, strict=False)
                for i in range(0, len(run.tokens), self._tile_tokens)
            ],
            np.int64,
        )
        n_tokens, n_outputs = len(tokens), len(output_rows)
        crew = self._crew.size if n_tokens == 1 else self._team.n_threads
        job = np.zeros(JOB_SLOTS, np.int64)
        values = {
            JOB.n_tokens: n_tokens,
            JOB.n_outputs: n_outputs,
            JOB.tokens: tokens.ctypes.data,
            JOB.positions: positions.ctypes.data,
            JOB.pages: pages.ctypes.data,
            JOB.tiles: tiles.ctypes.data,
            JOB.n_tiles: len(tiles),
            JOB.n_splits: _n_splits(int(positions[0])) if n_tokens == 1 else 1,
            JOB.output_rows: output_rows.ctypes.data,
            JOB.logits: logits.ctypes.data if logits is not None else 0,
            JOB.logits_stride: logits.strides[0] if logits is not None else 0,
        }
        for offset, value in values.items():
            job[offset // 8] = value
        begin = perf_counter()
        n_late = self._team.run(self._tape.operations, n_ops if n_outputs else self._tape.n_layers_end, job, crew)
        if n_tokens == 1:
            self._crew.note(perf_counter() - begin, n_late)
        for run in runs:
            run.sequence.length = run.position + len(run.tokens)
        return n_outputs


def _parts(runs: list[_Run], n_batch: int) -> Iterator[list[_Run]]:
    """The runs in order, cut so that each part has at most n_batch tokens."""
    part: list[_Run] = []
    room = n_batch
    for run in runs:
        start, n = 0, len(run.tokens)
        while start < n:
            stop = min(n, start + room)
            outputs = run.outputs[(run.outputs >= start) & (run.outputs < stop)] - np.int32(start)
            part.append(_Run(run.sequence, run.tokens[start:stop], run.position + start, outputs))
            room -= stop - start
            start = stop
            if room == 0:
                yield part
                part, room = [], n_batch
    if part:
        yield part


def _n_splits(position: int) -> int:
    """Parts into which attention divides the positions that one token sees.

    It depends on the position alone: a number of threads that had a say would change the order of additions, and with it texts.
    """
    return min(MAX_SPLITS, position // PAGE * 2 + 1)


def _check_head(config: ModelConfig) -> None:
    if config.head_dim % 8 or config.head_dim < 16:
        raise UnsupportedModelError(
            f"heads of {config.head_dim} channels: the CPU engine needs a multiple of 8, at least 16; choose another backend for this model"
        )


def _rotary_tables(config: ModelConfig, tensors: ModelTensors, n_ctx: int) -> tuple[NDArray[np.float32] | None, ...]:
    """Cosines and sines for each layer, float32 [n_ctx, 2, n_dims / 2] shared among layers, or None where a layer does not rotate."""
    factors = tensors.rope_factors(config.rope, n_ctx)

    def table(local: bool) -> NDArray[np.float32]:
        rope = config.local_rope if local else config.rope
        divisors = None if local and config.row.local_freq_base else factors
        return np.ascontiguousarray(np.stack(rope_tables(rope, n_ctx, divisors), axis=1))

    tables = {local: table(local) for local in {config.is_local(layer) for layer in range(config.n_layers)}}
    return tuple(tables[config.is_local(layer)] if config.has_rope(layer) else None for layer in range(config.n_layers))


def kernel_folder(cache_folder: Path | None = None) -> Path:
    """Where compiled kernels are kept."""
    from platformdirs import user_cache_dir

    return (cache_folder or Path(user_cache_dir("edgelm", appauthor=False))) / "kernels"
