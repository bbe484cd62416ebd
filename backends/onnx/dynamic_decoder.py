"""Runs the graph for any number of tokens (backends/onnx/export_cpu.py), with keys and values that stay where they are.

The cache is one array per layer for keys and one for values, [n_slots, n_kv_heads, n_ctx, head_dim]. A run binds the slots that it is
about as past and as present alike, so that attention writes the new keys and values in place and nothing is copied. The arrays are never
cleared: the system gives memory to those parts only that were written.

A prompt runs by itself, in pieces. Single tokens run together, one batch for each stretch of neighbouring slots. (An idle slot
that takes part costs about as much as a second batch, so gaps are not filled.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.backends.memory import require_memory
from edgelm.backends.onnx.decoder import Run
from edgelm.backends.onnx.session import Session, SessionSettings, open_session
from edgelm.errors import InsufficientMemoryError, InvalidRequestError, ModelFileError
from edgelm.quant.exported_folder import ExportedFolder

_DTYPES: Mapping[str, type[Any]] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_N_PIECE = 256  # tokens of a prompt at once: more gain nothing, and need more memory between the nodes
_LOGITS = 1 << 24  # logits at once, 64 MB
_PAGE = 256  # tokens for which memory is asked at once
_MAX_BINDINGS = 64
_FIRST_ROW, _NO_ROW = np.zeros(1, np.int64), np.zeros(0, np.int64)


class DynamicDecoder:
    """Implements Decoder."""

    def __init__(self, folder: ExportedFolder, settings: SessionSettings, n_ctx: int) -> None:
        """
        Args:
            n_ctx: tokens of one slot, at most the folder's.

        Raises:
            ModelFileError, UnsupportedModelError, BackendUnavailableError: as open_session, and a graph with other inputs or outputs.
            InsufficientMemoryError: the weights do not fit.
        """
        manifest = folder.manifest
        if n_ctx > manifest.n_ctx:
            raise InvalidRequestError(f"n_ctx is {n_ctx}, but {folder.path} was exported for {manifest.n_ctx} tokens; export it for more")
        path = folder.path / manifest.graphs[0].file
        self._weight_bytes = sum(size for name, size in manifest.files.items() if name.startswith(path.stem))
        require_memory(self._weight_bytes, f"the weights of {folder.path.name}")
        self._session = open_session(path, settings)
        self._graph = _GraphShape.read(self._session)
        self._n_ctx = n_ctx
        self._cache = _Cache(self._graph, n_ctx)
        self._bindings: dict[tuple[int, int, bool], _Binding] = {}
        self._positions = np.arange(n_ctx + 1)
        self._ones = np.ones((1, n_ctx), np.int64)
        self._tokens = np.zeros((self._cache.n_slots, 1), np.int64)
        self._closed = False

    @property
    def providers(self) -> Mapping[str, int]:
        return self._session.providers

    @property
    def n_ctx(self) -> int:
        return self._n_ctx

    @property
    def n_vocab(self) -> int:
        return self._graph.n_vocab

    @property
    def weight_bytes(self) -> int:
        return self._weight_bytes

    @property
    def bytes_per_token(self) -> int:
        return self._weight_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        return self._cache.bytes_per_token

    def reserve(self, n_slots: int) -> None:
        if n_slots > self._cache.n_slots:
            self._cache.grow(n_slots)
            self._bindings.clear()  # they point into the old arrays
            self._tokens = np.zeros((self._cache.n_slots, 1), np.int64)

    def run(self, runs: Sequence[Run], hidden: bool) -> list[NDArray[np.float32]]:
        for run in runs:
            self._cache.commit(run.slot, run.n_past + len(run.tokens))
        results: dict[int, NDArray[np.float32]] = {}
        for index, run in enumerate(runs):
            if len(run.tokens) > 1:
                results[index] = self._run_prompt(run, hidden)
        for group in _neighbours(runs):
            rows = self._run_singles([runs[index] for index in group], hidden)
            for index, row in zip(group, rows, strict=True):
                results[index] = row[: len(runs[index].rows)]
        return [results[index] for index in range(len(runs))]

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        self._cache.copy(source, target, n_tokens)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._bindings.clear()
            self._cache.clear()
            self._session.close()

    def _run_prompt(self, run: Run, hidden: bool) -> NDArray[np.float32]:
        """Compute the tokens piece by piece; outputs [n_rows, width]."""
        result = np.empty((len(run.rows), self._width(hidden)), np.float32)
        binding = self._binding(run.slot, 1, hidden)
        n_piece = _N_PIECE if len(run.rows) <= 1 else max(1, min(_N_PIECE, _LOGITS // self._graph.n_vocab))
        done = 0
        for start in range(0, len(run.tokens), n_piece):
            tokens = run.tokens[start : start + n_piece]
            rows = run.rows[(run.rows >= start) & (run.rows < start + len(tokens))] - start
            ends = np.array([run.n_past + start + len(tokens)])
            binding.run(tokens[None].astype(np.int64), self._mask(ends), rows, result[None, done : done + len(rows)])
            done += len(rows)
        return result

    def _run_singles(self, runs: Sequence[Run], hidden: bool) -> NDArray[np.float32]:
        """Compute one token of each of some neighbouring slots; outputs [n_runs, 1 or 0 rows, width]."""
        tokens = self._tokens[: len(runs)]
        tokens[:, 0] = [run.tokens[0] for run in runs]
        mask = self._mask(np.array([run.n_past + 1 for run in runs]))
        rows = _FIRST_ROW if any(len(run.rows) for run in runs) else _NO_ROW
        result = np.empty((len(runs), len(rows), self._width(hidden)), np.float32)
        self._binding(runs[0].slot, len(runs), hidden).run(tokens, mask, rows, result)
        return result

    def _width(self, hidden: bool) -> int:
        return self._graph.n_embd if hidden else self._graph.n_vocab

    def _mask(self, ends: NDArray[np.int64]) -> NDArray[np.int64]:
        """Ones for the tokens that each slot has after the run, then zeros: [n_slots, most tokens]."""
        if len(ends) == 1:
            return self._ones[:, : ends[0]]
        return (self._positions[: ends.max()] < ends[:, None]).astype(np.int64)

    def _binding(self, first: int, n_slots: int, hidden: bool) -> _Binding:
        key = (first, n_slots, hidden)
        if key not in self._bindings:
            if len(self._bindings) == _MAX_BINDINGS:
                self._bindings.clear()
            self._bindings[key] = _Binding(self._session, self._cache, first, n_slots, "hidden_states" if hidden else "logits")
        return self._bindings[key]


def _neighbours(runs: Sequence[Run]) -> Iterator[list[int]]:
    """Indices of the runs of a single token, by slot, each list a stretch of slots without a gap."""
    singles = sorted((index for index, run in enumerate(runs) if len(run.tokens) == 1), key=lambda index: runs[index].slot)
    group: list[int] = []
    for index in singles:
        if group and runs[index].slot > runs[group[-1]].slot + 1:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


class _GraphShape:
    """Sizes that the graph's inputs and outputs tell."""

    def __init__(self, n_layers: int, n_kv_heads: int, head_dim: int, dtype: type[Any], n_vocab: int, n_embd: int) -> None:
        self.n_layers, self.n_kv_heads, self.head_dim, self.dtype = n_layers, n_kv_heads, head_dim, dtype
        self.n_vocab, self.n_embd = n_vocab, n_embd

    @classmethod
    def read(cls, session: Session) -> _GraphShape:
        """
        Raises:
            ModelFileError: the graph has not the inputs and outputs that an exported one has.
        """
        inputs = {tensor.name: tensor for tensor in (*session.ort.get_inputs(), *session.ort.get_overridable_initializers())}
        outputs = {tensor.name: tensor for tensor in session.ort.get_outputs()}
        n_layers = sum(name.endswith(".key") for name in inputs)
        wanted = {"input_ids", "attention_mask", "logit_rows", *_names("past_key_values", n_layers)}
        given = {"logits", "hidden_states", *_names("present", n_layers)}
        if not n_layers or wanted != set(inputs) or given != set(outputs):
            missing = sorted((wanted - set(inputs)) | (given - set(outputs))) or sorted(set(inputs) - wanted)
            raise ModelFileError(
                f"{session.path}: not a graph that edgelm exported ({', '.join(missing[:4])} missing or not known); export the model again"
            )
        past = inputs["past_key_values.0.key"]
        return cls(
            n_layers, past.shape[1], past.shape[3], _DTYPES[past.type], outputs["logits"].shape[2], outputs["hidden_states"].shape[2]
        )


class _Cache:
    """Keys and values of all slots.

    Attributes:
        arrays: for each of _names("", n_layers) one array [n_slots, n_kv_heads, n_ctx, head_dim].
        lengths: int64 [n_slots], an upper bound of the tokens that each slot holds.
    """

    def __init__(self, graph: _GraphShape, n_ctx: int) -> None:
        self._graph, self._n_ctx = graph, n_ctx
        self.n_slots = 0
        self.arrays: list[NDArray[Any]] = []
        self.lengths = np.zeros(0, np.int64)
        self._committed = np.zeros(0, np.int64)
        self.bytes_per_token = 2 * graph.n_layers * graph.n_kv_heads * graph.head_dim * np.dtype(graph.dtype).itemsize
        self.grow(1)

    @property
    def names(self) -> list[str]:
        return _names("", self._graph.n_layers)

    def grow(self, n_slots: int) -> None:
        """At least double the slots, so that many sequences one by one copy each other only a few times.

        Raises:
            InsufficientMemoryError: there is no room for the copy.
        """
        n_new = max(n_slots, 2 * self.n_slots)
        require_memory(int(self.lengths.sum()) * self.bytes_per_token, "a larger KV cache")
        shape = (n_new, self._graph.n_kv_heads, self._n_ctx, self._graph.head_dim)
        try:
            arrays = [np.empty(shape, self._graph.dtype) for _ in self.names]
        except MemoryError as error:
            raise InsufficientMemoryError(
                f"no room for a KV cache of {n_new} sequences of {self._n_ctx} tokens; use a smaller n_ctx"
            ) from error
        for slot, length in enumerate(self.lengths):
            for new, old in zip(arrays, self.arrays, strict=True):
                new[slot, :, :length] = old[slot, :, :length]
        self.arrays = arrays
        more = np.zeros(n_new - self.n_slots, np.int64)
        self._committed = np.concatenate([self.lengths, more])
        self.lengths = np.concatenate([self.lengths, more])
        self.n_slots = n_new

    def commit(self, slot: int, length: int) -> None:
        """Note that the slot is about to hold so many tokens.

        Raises:
            InsufficientMemoryError: there is no memory for them.
        """
        if length > self._committed[slot]:
            pages = -(-length // _PAGE) * _PAGE
            require_memory(int(pages - self._committed[slot]) * self.bytes_per_token, "the KV cache")
            self._committed[slot] = pages
        self.lengths[slot] = length

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        self.commit(target, n_tokens)
        for array in self.arrays:
            array[target, :, :n_tokens] = array[source, :, :n_tokens]

    def clear(self) -> None:
        self.arrays, self.n_slots = [], 0


class _Binding:
    """Inputs and outputs for some neighbouring slots. Their cache is bound once, the rest for each run."""

    def __init__(self, session: Session, cache: _Cache, first: int, n_slots: int, output: str) -> None:
        self._session = session
        self._output = output
        self._bound: dict[str, tuple[int, tuple[int, ...]]] = {}
        self._ort = session.ort.io_binding()
        self._n_cached = len(cache.arrays)  # these outputs are bound first
        for name, array in zip(cache.names, cache.arrays, strict=True):
            part = array[first : first + n_slots]
            place = ("cpu", 0, part.dtype.type, part.shape, part.ctypes.data)
            self._ort.bind_input(f"past_key_values{name}", *place)
            self._ort.bind_output(f"present{name}", *place)

    def run(self, tokens: NDArray[np.int64], mask: NDArray[np.int64], rows: NDArray[np.int64], result: NDArray[np.float32]) -> None:
        """
        Args:
            tokens: [n_slots, n_tokens].
            mask: [n_slots, n_total].
            rows: [n_rows], which of n_tokens give outputs, the same in every slot.
            result: the outputs are written to it, [n_slots, n_rows, width].
        """
        for name, array in (("input_ids", tokens), ("attention_mask", mask), ("logit_rows", rows)):
            if self._is_news(name, array):
                self._ort.bind_input(name, "cpu", 0, np.int64, array.shape, array.ctypes.data)
        fits = len(rows) == 1  # what the graph declares; for other numbers of rows ONNX Runtime takes no array of ours
        if not fits:
            self._bound.pop(self._output, None)
            self._ort.bind_output(self._output, "cpu")
        elif self._is_news(self._output, result):
            self._ort.bind_output(self._output, "cpu", 0, np.float32, result.shape, result.ctypes.data)
        self._session.run(self._ort)
        if not fits:
            result[:] = self._ort.get_outputs_as_ortvaluevector()[self._n_cached].numpy()

    def _is_news(self, name: str, array: NDArray[Any]) -> bool:
        """Whether another array, or another shape, was bound to the name before."""
        place = (array.ctypes.data, array.shape)
        if self._bound.get(name) == place:
            return False
        self._bound[name] = place
        return True


def _names(prefix: str, n_layers: int) -> list[str]:
    return [f"{prefix}.{layer}.{part}" for layer in range(n_layers) for part in ("key", "value")]
