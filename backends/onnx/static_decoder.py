"""Runs graphs of fixed shapes (backends/onnx/export_static.py): pieces of so many tokens, and a KV cache that the host keeps.

Each slot has its keys and values in two arrays. The graphs read them where they lie; after a run only the new keys and values are copied
in. A piece with fewer tokens than its graph takes is filled up with token 0: those tokens come last, so no other token sees them, and
their keys and values are dropped.

The graphs may be quantized (backends/onnx/export_qnn.py). Inputs and outputs are then whole numbers, and the manifest's details say under
"quantization" how they stand for real ones: {tensor: {"type": ..., "scale": s, "zero_point": z}}, real = s (whole - z).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.backends.config import ModelConfig, read_config
from edgelm.backends.memory import require_memory
from edgelm.backends.onnx.context_binary import prepared_settings
from edgelm.backends.onnx.decoder import Run
from edgelm.backends.onnx.quantization import Quantization
from edgelm.backends.onnx.session import Session, SessionSettings, open_session
from edgelm.errors import InsufficientMemoryError, ModelFileError
from edgelm.quant.exported_folder import ExportedFolder

MASK_VALUE = np.float32(-1e4)
"""What is added to the score of a key that must not be seen: far below any score, and within the range of float16."""

_WEIGHT_FILES = (".onnx", ".data", ".bin")
_DTYPES: Mapping[str, type[Any]] = {
    "tensor(float)": np.float32,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(uint16)": np.uint16,
    "tensor(uint8)": np.uint8,
}


class _Cache:
    """Keys [n_layers, 1, n_kv_heads, head_dim, n] and values [n_layers, 1, n_kv_heads, n, head_dim] of n tokens."""

    def __init__(self, config: ModelConfig, n: int, dtype: np.dtype[Any]) -> None:
        heads = (config.n_layers, 1, config.n_kv_heads)
        self.keys = np.zeros((*heads, config.head_dim, n), dtype)
        self.values = np.zeros((*heads, n, config.head_dim), dtype)

    def tensors(self, prefix: str) -> dict[str, NDArray[Any]]:
        """The arrays of each layer, by the names that graphs give them."""
        keys = {f"{prefix}.{layer}.key": array for layer, array in enumerate(self.keys)}
        return keys | {f"{prefix}.{layer}.value": array for layer, array in enumerate(self.values)}

    def copy(self, source: _Cache, start: int, n: int) -> None:
        """Take the first n tokens of `source`, storing them from token `start` on."""
        self.keys[..., start : start + n] = source.keys[..., :n]
        self.values[..., start : start + n, :] = source.values[..., :n, :]


class _Piece:
    """One graph, with arrays for everything it reads and writes besides the past."""

    def __init__(self, session: Session, n_tokens: int, folder: ExportedFolder, config: ModelConfig) -> None:
        manifest = folder.manifest
        self.n = n_tokens
        self.session = session
        self._n_ctx = manifest.n_ctx
        self._quantization = _quantizations(folder)
        inputs, outputs = session.ort.get_inputs(), session.ort.get_outputs()
        self._types = {tensor.name: tensor for tensor in (*inputs, *outputs)}
        self._check(folder, config)
        self.cache_type = self._dtype("past_key_values.0.key")
        self._new = _Cache(config, n_tokens, self.cache_type)
        self._inputs = {tensor.name: self._array(tensor.name) for tensor in inputs if not tensor.name.startswith("past_")}
        self._results = {name: self._array(name) for name in ("logits", "hidden_states")}
        self._windows = {"attention_mask": manifest.n_ctx + n_tokens, "local_attention_mask": config.sliding_window}

    def bind(self, past: _Cache) -> Any:
        """The graph's inputs and outputs as an onnxruntime.IOBinding, with the past where `past` has it."""
        binding = self.session.ort.io_binding()
        for name, array in {**self._inputs, **past.tensors("past_key_values")}.items():
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, array in {**self._results, **self._new.tensors("new_key_values")}.items():
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        return binding

    def run(self, binding: Any, past: _Cache, n_past: int, tokens: NDArray[np.int32]) -> None:
        """Compute at most n tokens, and store their keys and values after the n_past that are there."""
        n = len(tokens)
        self._inputs["input_ids"][:] = 0
        self._inputs["input_ids"][:n] = tokens
        if "positions" in self._inputs:
            self._inputs["positions"][:] = np.minimum(n_past + np.arange(self.n), self._n_ctx - 1)
        for name, window in self._windows.items():
            if name in self._inputs:
                seen = visible_keys(n_past, self.n, self._n_ctx, window)
                self._inputs[name][0, 0] = self._codes(name, np.where(seen, np.float32(0.0), MASK_VALUE))
        self.session.run(binding)
        past.copy(self._new, n_past, n)

    def result(self, name: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Rows of "logits" or "hidden_states" of the last run."""
        codes = self._results[name][rows]
        quantization = self._quantization.get(name)
        if quantization is None:
            return codes
        values: NDArray[np.float32] = (codes.astype(np.float32) - np.float32(quantization.zero_point)) * np.float32(quantization.scale)
        return values

    @property
    def n_vocab(self) -> int:
        """Columns of the logits."""
        return int(self._types["logits"].shape[-1])

    def _codes(self, name: str, values: NDArray[np.float32]) -> NDArray[Any]:
        """What the graph takes for real values; those beyond its range become the range's end."""
        quantization = self._quantization.get(name)
        return values if quantization is None else quantization.codes(values)

    def _dtype(self, name: str) -> np.dtype[Any]:
        return np.dtype(_DTYPES[self._types[name].type])

    def _array(self, name: str) -> NDArray[Any]:
        return np.zeros(self._types[name].shape, self._dtype(name))

    def _check(self, folder: ExportedFolder, config: ModelConfig) -> None:
        """
        Raises:
            ModelFileError: the graph is not the one that the manifest and the metadata speak of.
        """
        heads, d, n, n_ctx = config.n_kv_heads, config.head_dim, self.n, self._n_ctx
        wanted: dict[str, tuple[int, ...]] = {"input_ids": (n,), "hidden_states": (n, config.n_embd)}
        for layer in range(config.n_layers):
            wanted |= {f"past_key_values.{layer}.key": (1, heads, d, n_ctx), f"past_key_values.{layer}.value": (1, heads, n_ctx, d)}
            wanted |= {f"new_key_values.{layer}.key": (1, heads, d, n), f"new_key_values.{layer}.value": (1, heads, n, d)}
        masks = {"local_attention_mask" if local else "attention_mask" for local in config.local_layers}
        wanted |= dict.fromkeys(masks, (1, 1, n, n_ctx + n))
        for name, shape in wanted.items():
            found = self._types.get(name)
            if found is None or tuple(found.shape) != shape or found.type not in _DTYPES:
                is_there = "is not there" if found is None else f"is {found.type} {list(found.shape)}"
                raise ModelFileError(
                    f"{folder.path}: the graph for {n} tokens should have a tensor {name} of shape {list(shape)}, but it {is_there}; "
                    "export the model again"
                )


def _quantizations(folder: ExportedFolder) -> dict[str, Quantization]:
    """How each input and output that holds whole numbers stands for real ones.

    Raises:
        ModelFileError: the manifest is damaged.
    """
    try:
        return {name: Quantization(**values) for name, values in folder.manifest.details.get("quantization", {}).items()}
    except (AttributeError, TypeError):
        raise ModelFileError(f"{folder.path}: the manifest's details of the quantization are damaged; export the model again") from None


class StaticDecoder:
    """The graphs of an exported folder for qnn or nnapi, as a Decoder.

    Args:
        folder: the exported model.
        settings: of the sessions.
        n_ctx: tokens of one slot, at most the folder's.

    Raises:
        ModelFileError, UnsupportedModelError, BackendUnavailableError: as open_session; also a graph that is not what the manifest says.
        InsufficientMemoryError: the weights do not fit.
    """

    def __init__(self, folder: ExportedFolder, settings: SessionSettings, n_ctx: int) -> None:
        manifest = folder.manifest
        settings = prepared_settings(folder, settings)
        self._config = read_config(folder.metadata)
        self._n_ctx = n_ctx
        self._n_places = manifest.n_ctx  # of the cache: the graphs read them all
        self._pieces: list[_Piece] = []
        self._slots: list[_Cache] = []
        self._bindings: dict[tuple[int, int], Any] = {}  # by slot and tokens of the graph
        self._weight_bytes = sum(size for name, size in manifest.files.items() if name.endswith(_WEIGHT_FILES))
        prompts = tuple(Path(graph.file).stem for graph in manifest.graphs if graph.n_tokens != 1)
        self._prompt_bytes = sum(size for name, size in manifest.files.items() if name.startswith(prompts))
        require_memory(self._weight_bytes, f"the weights of {folder.path.name}")
        for graph in sorted(manifest.graphs, key=lambda graph: graph.n_tokens or 0):
            if graph.n_tokens is None:
                raise ModelFileError(f"{folder.path}: the graph {graph.file} has no fixed number of tokens; export the model again")
            session = open_session(folder.path / graph.file, settings)
            self._pieces.append(_Piece(session, graph.n_tokens, folder, self._config))
        self._cache_type = self._pieces[0].cache_type

    @property
    def providers(self) -> Mapping[str, int]:
        """Nodes of all graphs that each execution provider got."""
        counts: dict[str, int] = {}
        for piece in self._pieces:
            for name, n_nodes in piece.session.providers.items():
                counts[name] = counts.get(name, 0) + n_nodes
        return counts

    @property
    def n_ctx(self) -> int:
        return self._n_ctx

    @property
    def n_vocab(self) -> int:
        return self._pieces[0].n_vocab

    @property
    def weight_bytes(self) -> int:
        """Bytes of the graphs' files and their data."""
        return self._weight_bytes

    @property
    def bytes_per_token(self) -> int:
        """Bytes of the files that are not those of the graph for prompts alone."""
        return self._weight_bytes - self._prompt_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        c = self._config
        return 2 * c.n_layers * c.n_kv_heads * c.head_dim * self._cache_type.itemsize

    def reserve(self, n_slots: int) -> None:
        """Make room for slots 0 .. n_slots - 1, as Decoder.reserve says."""
        missing = n_slots - len(self._slots)
        if missing <= 0:
            return
        what = f"the KV cache of {missing} sequences of {self._n_places} tokens"
        require_memory(missing * self._n_places * self.kv_bytes_per_token, what)
        try:
            self._slots += [_Cache(self._config, self._n_places, self._cache_type) for _ in range(missing)]
        except MemoryError:
            raise InsufficientMemoryError(f"there is no memory for {what}; use fewer sequences, or export with a smaller n_ctx") from None

    def run(self, runs: Sequence[Run], hidden: bool) -> list[NDArray[np.float32]]:
        """Compute the tokens of one run after the other, as Decoder.run says."""
        name = "hidden_states" if hidden else "logits"
        return [self._run(run, name) for run in runs]

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        """Copy keys and values of the first n_tokens of one slot to another."""
        self._slots[target].copy(self._slots[source], 0, n_tokens)

    def close(self) -> None:
        """Release the graphs and the cache. Closing twice is allowed."""
        self._bindings.clear()
        for piece in self._pieces:
            piece.session.close()
        self._pieces, self._slots = [], []

    def _run(self, run: Run, name: str) -> NDArray[np.float32]:
        parts: list[NDArray[np.float32]] = []
        start = 0
        while start < len(run.tokens):
            piece = self._piece_for(len(run.tokens) - start)
            tokens = run.tokens[start : start + piece.n]
            piece.run(self._binding(run.slot, piece), self._slots[run.slot], run.n_past + start, tokens)
            rows = run.rows[(run.rows >= start) & (run.rows < start + len(tokens))]
            parts.append(piece.result(name, rows - start))
            start += len(tokens)
        return np.concatenate(parts)

    def _piece_for(self, n_tokens: int) -> _Piece:
        """The smallest graph that takes so many tokens at once, else the largest."""
        return next((piece for piece in self._pieces if piece.n >= n_tokens), self._pieces[-1])

    def _binding(self, slot: int, piece: _Piece) -> Any:
        key = (slot, piece.n)
        if key not in self._bindings:
            self._bindings[key] = piece.bind(self._slots[slot])
        return self._bindings[key]


def visible_keys(n_past: int, n: int, n_ctx: int, window: int) -> NDArray[np.bool_]:
    """Which keys each of n tokens after n_past others sees, [n, n_ctx + n]: the past's, of which n_past are filled, then the tokens' own.

    A token sees the last `window` tokens, itself included.
    """
    positions = n_past + np.arange(n)
    keys = np.concatenate([np.arange(n_ctx), positions])
    filled = np.concatenate([np.arange(n_ctx) < n_past, np.ones(n, np.bool_)])
    distance = positions[:, None] - keys
    seen: NDArray[np.bool_] = filled & (distance >= 0) & (distance < window)
    return seen
