"""The llama.cpp engine: a Backend on llama-cpp-python's C functions, with several sequences in one KV cache."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgelm.backends.base import ABILITIES, DEFAULT_N_CTX, Batch, Chunk, ModelInfo, Outputs, Progress
from edgelm.backends.batches import check_batch
from edgelm.backends.cpu.topology import choose_threads
from edgelm.backends.llamacpp_context import CELL_STEP, Context, ContextSettings, LoadedModel, LoadSettings, Tokens, ids_per_slot
from edgelm.backends.llamacpp_layout import bytes_per_token, read_layout, rope_original_context
from edgelm.backends.llamacpp_library import find_devices, load_library
from edgelm.backends.memory import require_memory
from edgelm.backends.slots import Slots
from edgelm.errors import BackendUnavailableError, ClosedError, InsufficientMemoryError, InvalidRequestError, UnsupportedModelError
from edgelm.quant.blocks import BF16, F16, F32, IQ4_NL, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0
from edgelm.quant.exported_folder import ExportedFolder
from edgelm.quant.model_file import ModelFile

_KV_TYPES = {format.name.lower(): format for format in (F32, F16, BF16, Q8_0, Q5_1, Q5_0, Q4_1, Q4_0, IQ4_NL)}
_FIRST_SLOTS = 8  # more are made when they are needed: each costs llama.cpp a row of logits
_ALL_LAYERS = -1
_NONE = np.empty(0, np.int32)


@dataclass(frozen=True)
class LlamaCppOptions:
    """What can be asked of llama.cpp beyond what all engines know.

    Attributes:
        n_gpu_layers: layers that go to GPUs and RPC servers; 0 computes on the CPU alone, -1 takes all layers.
        mmap: map the file rather than read it.
        mlock: keep the weights from being swapped out.
        kv_type: number format of the KV cache: "f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0" or "iq4_nl".
            None is "f16", or "f32" where precision "f32" is asked for.
        value_type: number format of the values in it, where it is not that of the keys.
        flash_attention: None leaves the choice to llama.cpp, but is False where keys and values are "f32", as it rounds on the way.
        n_sequences: most sequences held at once; None for as many as llama.cpp can hold.
        n_batch: tokens computed at once.
        rpc_servers: "host:port" of llama.cpp's rpc-server programs, which take their part of n_gpu_layers.

    Raises:
        InvalidRequestError: a value that makes no sense.
    """

    n_gpu_layers: int = 0
    mmap: bool = True
    mlock: bool = False
    kv_type: str | None = None
    value_type: str | None = None
    flash_attention: bool | None = None
    n_sequences: int | None = None
    n_batch: int = 512
    rpc_servers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("kv_type", "value_type"):
            value = getattr(self, name)
            if value is not None and value not in _KV_TYPES:
                raise InvalidRequestError(f"{name} is {value!r}; it must be one of {', '.join(_KV_TYPES)}")
        if self.n_gpu_layers < _ALL_LAYERS:
            raise InvalidRequestError(f"n_gpu_layers is {self.n_gpu_layers}; it must be a number of layers, 0 for none or -1 for all")
        if self.n_batch < 1:
            raise InvalidRequestError(f"n_batch is {self.n_batch}; it must be at least 1")
        if self.n_sequences is not None and self.n_sequences < 1:
            raise InvalidRequestError(f"n_sequences is {self.n_sequences}; it must be at least 1")
        value_type = self.value_type or self.kv_type
        if self.flash_attention is False and value_type is not None and _KV_TYPES[value_type].n_elements > 1:
            raise InvalidRequestError(f"values in {value_type} need flash attention; leave flash_attention out, or set value_type to f16")
        for server in self.rpc_servers:
            host, _, port = server.rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 65536:
                raise InvalidRequestError(f"rpc_servers has {server!r}; give host:port, for example 192.168.1.5:50052")
        if self.rpc_servers and self.n_gpu_layers == 0:
            raise InvalidRequestError(
                "rpc_servers would get no layers; set n_gpu_layers to how many they take together with GPUs, -1 for all"
            )


_NO_SAVING = "sequences cannot be saved with llama.cpp; choose the cpu backend"


class LlamaCppBackend:
    """A model in llama.cpp. Thread-safe: calls are serialized.

    The KV cache begins with the cells of one sequence of n_ctx tokens, and is replaced by a larger one when several sequences need more.
    """

    def __init__(
        self,
        file: ModelFile,
        *,
        n_threads: int | None = None,
        n_ctx: int | None = None,
        precision: str | None = None,
        progress: Progress | None = None,
        cache_folder: Path | None = None,  # noqa: ARG002  (llama.cpp keeps nothing)
        options: LlamaCppOptions = LlamaCppOptions(),
    ) -> None:
        """
        Args:
            file: a GGUF file; it is closed once llama.cpp has loaded it.
            n_threads: one per physical core unless given.
            n_ctx: tokens that one sequence may hold; the model's own context, at most DEFAULT_N_CTX, unless given.
            precision: None for llama.cpp's own: activations are "int8" in products with quantized weights, else "f32".
            progress: called with a line before anything that takes long.
            cache_folder: not used.
            options: what can be asked of llama.cpp alone.

        Raises:
            BackendUnavailableError: llama.cpp is not installed, or lacks the GPU or RPC support that the options ask for.
            ModelFileError, UnsupportedModelError: the model cannot be run.
            InvalidRequestError: precision "f32" is asked for quantized weights, or options that llama.cpp refuses for this model.
            InsufficientMemoryError: weights and KV cache do not fit.
        """
        _check_container(file)
        quantized = any(len(tensor.shape) > 1 and tensor.format.n_elements > 1 for tensor in file.tensors.values())
        if quantized and precision == "f32":
            raise InvalidRequestError(
                f"{file.path.name} has quantized weights, and llama.cpp quantizes activations for them to 8 bits; "
                "leave precision out, or use the cpu backend for precision 'f32'"
            )
        api = load_library()
        layout = read_layout(file)
        n_ctx = n_ctx or min(layout.n_ctx_train, DEFAULT_N_CTX)
        n_threads = n_threads or choose_threads().n_threads
        kv_type = options.kv_type or ("f32" if precision == "f32" else "f16")
        key, value = _KV_TYPES[kv_type], _KV_TYPES[options.value_type or kv_type]
        kv_bytes = layout.kv_bytes(key, value)
        n_cells = _padded(n_ctx)
        offloaded = layout.n_layers if options.n_gpu_layers == _ALL_LAYERS else min(options.n_gpu_layers, layout.n_layers)
        self._host_share = 1.0 - offloaded / layout.n_layers  # of weights and KV cache, in this machine's memory
        weight_bytes = sum(tensor.data.nbytes for tensor in file.tensors.values())
        self._name = file.path.name
        require_memory(int(self._host_share * (weight_bytes + n_cells * kv_bytes)), f"{self._name} with a context of {n_ctx} tokens")
        devices = find_devices(api, options.n_gpu_layers, options.rpc_servers)
        if progress is not None:
            progress(f"loading {self._name} into llama.cpp")
        load = LoadSettings(devices, options.n_gpu_layers, options.mmap, options.mlock, rope_original_context(file, n_ctx))
        self._model = LoadedModel(api, file.path, load)
        self._max_sequences = api.llama_max_parallel_sequences() // ids_per_slot(self._model)
        if options.n_sequences is not None:
            self._max_sequences = min(self._max_sequences, options.n_sequences)
        flash_attention = False if options.flash_attention is None and key == value == F32 else options.flash_attention
        settings = ContextSettings(n_threads, options.n_batch, key.type_id, value.type_id, flash_attention)
        try:
            self._context = Context(self._model, settings, n_cells, min(_FIRST_SLOTS, self._max_sequences))
        except (InsufficientMemoryError, InvalidRequestError):
            self._model.close()
            raise
        self._slots = Slots()
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._closed = False
        self._info = ModelInfo(
            backend="llamacpp",
            architecture=layout.architecture,
            n_vocab=self._model.n_vocab,
            n_embd=self._model.n_embd,
            n_layers=self._model.n_layers,
            n_ctx=n_ctx,
            n_ctx_train=layout.n_ctx_train,
            n_threads=n_threads,
            precision="int8" if quantized else "f32",
            weight_bytes=self._model.n_bytes,
            bytes_per_token=bytes_per_token(file),
            kv_bytes_per_token=kv_bytes,
            abilities=ABILITIES - {"save"},
        )
        file.close()

    @property
    def info(self) -> ModelInfo:
        return self._info

    def forward(self, batch: Batch) -> NDArray[np.float32]:
        """Logits, as Backend.forward says."""
        with self._lock:
            self._check(batch)
            logits = np.empty((sum(chunk.n_outputs for chunk in batch), self._info.n_vocab), np.float32)
            with self._all_or_nothing(batch):
                self._compute(self._place(batch), logits)
        return logits

    def hidden(self, batch: Batch) -> NDArray[np.float32]:
        """Final-norm hidden states, as Backend.hidden says."""
        with self._lock:
            self._check(batch)
            states = np.empty((sum(chunk.n_outputs for chunk in batch), self._info.n_embd), np.float32)
            with self._all_or_nothing(batch):
                tokens = self._place(batch)
                # llama.cpp takes every token for an output then; the outputs are each chunk's last tokens, so they can come last
                wanted = tokens.outputs == 1
                self._compute(tokens[~wanted], states[:0])
                self._compute(tokens[wanted], states, hidden=True)
        return states

    def length(self, sequence: int) -> int:
        with self._lock:
            return self._slots.length(sequence)

    def share(self, source: int, target: int, n_tokens: int) -> None:
        with self._lock:
            self._check_open()
            self._slots.check_share(source, target, n_tokens)
            self._check_room_for(1)
            origin, slot = self._slots.find(source), self._slots.claim(target)
            try:
                self._reserve(slot.index + 1)
            except InsufficientMemoryError:
                self._slots.release(target)
                raise
            if origin is not None:
                self._context.share(origin.index, slot.index, n_tokens)
            slot.length = n_tokens

    def truncate(self, sequence: int, n_tokens: int) -> None:
        with self._lock:
            self._check_open()
            self._slots.check_truncate(sequence, n_tokens)
            slot = self._slots.find(sequence)
            if slot is not None:
                self._context.cut(slot.index, n_tokens)
                slot.length = n_tokens

    def save(self, sequence: int) -> list[NDArray[np.uint8]]:  # noqa: ARG002
        raise InvalidRequestError(_NO_SAVING)

    def restore(self, sequence: int, n_tokens: int, state: NDArray[np.uint8]) -> None:  # noqa: ARG002
        raise InvalidRequestError(_NO_SAVING)

    def free(self, sequence: int) -> None:
        with self._lock:
            slot = self._slots.release(sequence)
            if slot is not None:
                self._context.cut(slot.index, 0)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._slots.clear()
            self._context.close()
            self._model.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the model is closed; open it again to use it")
        if os.getpid() != self._process:  # llama.cpp's threads do not survive a fork; waiting for them would last for ever
            raise BackendUnavailableError(
                "the model was opened before this process was forked off; start the process with multiprocessing's method spawn"
            )

    def _check(self, batch: Batch) -> None:
        self._check_open()
        check_batch(batch, self._info.n_vocab, self._info.n_ctx, self._slots.length)
        self._check_room_for(sum(self._slots.find(chunk.sequence) is None for chunk in batch))

    def _check_room_for(self, n_new: int) -> None:
        held = len(self._slots)
        if held + n_new > self._max_sequences:
            raise InsufficientMemoryError(
                f"{n_new} more sequences were asked for, but {held} of the {self._max_sequences} that fit are held; "
                "free some, or raise the option n_sequences where it was set"
            )

    @contextmanager
    def _all_or_nothing(self, batch: Batch) -> Iterator[None]:
        """Take back what was appended unless the whole batch is."""
        new = [chunk.sequence for chunk in batch if self._slots.find(chunk.sequence) is None]
        complete = False
        try:
            yield
            complete = True
        finally:
            for chunk in batch:
                slot = self._slots.find(chunk.sequence)
                if slot is not None and complete:
                    slot.length += len(chunk.tokens)
                elif slot is not None:
                    self._context.cut(slot.index, slot.length)
                    if chunk.sequence in new:
                        self._slots.release(chunk.sequence)

    def _place(self, batch: Batch) -> Tokens:
        """The batch's tokens one after the other, each with its place in the KV cache."""
        slots = [self._slots.claim(chunk.sequence) for chunk in batch]
        if len(batch) == 1 and len(batch[0].tokens) == 1:
            self._reserve(slots[0].index + 1)
            return Tokens(batch[0].tokens, *(np.array([n], np.int32) for n in (slots[0].length, slots[0].index, batch[0].n_outputs)))
        counts = [len(chunk.tokens) for chunk in batch]
        self._reserve(max((slot.index + 1 for slot in slots), default=0))
        return Tokens(
            ids=np.concatenate([_NONE, *(chunk.tokens for chunk in batch)]),
            positions=np.concatenate([_NONE, *(np.arange(slot.length, slot.length + n) for slot, n in zip(slots, counts, strict=True))]),
            slots=np.repeat(np.array([slot.index for slot in slots], np.int32), counts),
            outputs=np.concatenate([_NONE, *(_flags(chunk) for chunk in batch)]),
        )

    def _compute(self, tokens: Tokens, rows: NDArray[np.float32], hidden: bool = False) -> None:
        """Append the tokens, and write the logits or hidden states of the outputs to rows [n_outputs, ...]."""
        if (
            0 < len(tokens.ids) <= min(self._context.n_batch, self._context.n_rows)
        ):  # one part, as in decoding, where each microsecond counts
            self._compute_part(tokens, rows, hidden)
            return
        done = 0
        for part in _parts(tokens.outputs, self._context.n_batch, self._context.n_rows):
            n = int(tokens.outputs[part].sum())
            self._compute_part(tokens[part], rows[done : done + n], hidden)
            done += n

    def _compute_part(self, tokens: Tokens, rows: NDArray[np.float32], hidden: bool) -> None:
        while not self._context.decode(tokens, hidden):
            self._enlarge(self._more_cells(), self._context.n_slots)
        if len(rows):
            read = self._context.read_hidden if hidden else self._context.read_logits
            read(rows)

    def _reserve(self, n_slots: int) -> None:
        """Have at least so many slots."""
        if n_slots > self._context.n_slots:
            self._enlarge(self._context.n_cells, min(self._max_sequences, max(n_slots, 2 * self._context.n_slots)))

    def _more_cells(self) -> int:
        """The next size of the KV cache: half as much again, and room for the part of a batch that did not fit."""
        now = self._context.n_cells
        return _padded(now + max(now // 2, self._context.n_batch))

    def _enlarge(self, n_cells: int, n_slots: int) -> None:
        needed = n_cells * self._info.kv_bytes_per_token * self._host_share + self._context.state_bytes
        require_memory(int(needed), f"a KV cache of {n_cells} tokens for {n_slots} sequences of {self._name}")
        larger = self._context.enlarged(n_cells, n_slots)
        self._context.close()
        self._context = larger


def _check_container(file: ModelFile) -> None:
    if isinstance(file, ExportedFolder):
        raise UnsupportedModelError(
            f"{file.path} was exported for ONNX Runtime; open it with the backend onnx, or give llama.cpp the GGUF file it was made from"
        )
    if file.path.is_dir():
        raise UnsupportedModelError(
            f"llama.cpp reads GGUF files, and {file.path} is a folder; use the backend cpu or onnx for it, "
            "or convert it with llama.cpp's convert_hf_to_gguf.py"
        )


def _parts(outputs: NDArray[np.int32], n_batch: int, n_rows: int) -> Iterator[slice]:
    """All tokens in order, cut so that each part has at most n_batch tokens and n_rows outputs."""
    counts = np.cumsum(outputs)
    start = 0
    while start < len(outputs):
        before = int(counts[start - 1]) if start else 0
        stop = min(start + n_batch, int(np.searchsorted(counts, before + n_rows, side="right")))
        yield slice(start, stop)
        start = stop


def _flags(chunk: Chunk) -> NDArray[np.int32]:
    """1 for each token that gives an output, int32 [n_tokens]."""
    flags = np.full(len(chunk.tokens), chunk.outputs is Outputs.ALL, np.int32)
    flags[-1] = chunk.outputs is not Outputs.NONE
    return flags


def _padded(n_cells: int) -> int:
    """As many cells as llama.cpp makes of n_cells."""
    return -(-n_cells // CELL_STEP) * CELL_STEP
