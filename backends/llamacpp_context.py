"""A model loaded by llama.cpp, and a context on it: a KV cache with buffers to compute."""

from __future__ import annotations

import ctypes
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.backends.llamacpp_library import complaints
from edgelm.errors import BackendUnavailableError, InsufficientMemoryError, InvalidRequestError, ModelFileError, UnsupportedModelError

CELL_STEP = 256
"""llama.cpp rounds the cells of a KV cache up to this."""
_NO_SLOT = 1  # llama_decode's status where too few cells are free; nothing was computed
_FLASH_ATTENTION = {None: -1, False: 0, True: 1}
_ROW_BYTES = 256 << 20  # of logits in one part of a batch: llama.cpp keeps buffers for so many


@dataclass(frozen=True)
class LoadSettings:
    """How weights are loaded.

    Attributes:
        devices: handles of the devices that layers may go to; None for all GPUs.
        n_gpu_layers: layers to offload, -1 for all.
        mmap, mlock: map the file instead of reading it; keep it from being swapped out.
        rope_original_context: set in place of the file's key; it decides between LongRoPE's factors.
    """

    devices: list[int] | None
    n_gpu_layers: int
    mmap: bool
    mlock: bool
    rope_original_context: tuple[str, int] | None = None


class LoadedModel:
    """The weights of one GGUF file in llama.cpp.

    Attributes:
        n_vocab, n_embd, n_layers, n_ctx_train: sizes of the model; n_embd is that of its hidden states.
        n_window: tokens that its sliding-window layers see; 0 where it has none.
        n_bytes: of weights.

    Raises:
        ModelFileError: llama.cpp does not load the file.
        UnsupportedModelError: it is not a decoder with a plain KV cache.
        InsufficientMemoryError: the weights cannot be locked in memory.
    """

    def __init__(self, api: Any, path: Path, settings: LoadSettings) -> None:
        self.api = api
        params = api.llama_model_default_params()
        params.n_gpu_layers = settings.n_gpu_layers
        params.load_mode = int(settings.mmap) + 2 * int(settings.mlock)  # LLAMA_LOAD_MODE_NONE, _MMAP, _MLOCK, _MMAP_MLOCK
        if settings.devices is not None:
            devices = (ctypes.c_void_p * (len(settings.devices) + 1))(*settings.devices, None)
            params.devices = ctypes.cast(devices, ctypes.c_void_p)
        if settings.rope_original_context is not None:
            overrides = (api.llama_model_kv_override * 2)()  # the second, empty, ends the list
            overrides[0].key, value = settings.rope_original_context[0].encode(), settings.rope_original_context[1]
            overrides[0].tag, overrides[0].value.val_i64 = api.LLAMA_KV_OVERRIDE_TYPE_INT, value
            params.kv_overrides = overrides
        complaints.clear()
        self.pointer: Any = api.llama_model_load_from_file(str(path).encode(), params)
        if not self.pointer:
            unknown = complaints.speak_of("unknown model architecture")
            advice = "choose another backend for it" if unknown else "fetch the file again, or choose another backend for it"
            error = UnsupportedModelError if unknown else ModelFileError
            raise error(f"llama.cpp cannot load {path}: {complaints.reason()}; {advice}")
        self._finalizer = weakref.finalize(self, api.llama_model_free, self.pointer)
        if settings.mlock and (complaints.speak_of("mlock") or complaints.speak_of("VirtualLock")):
            self.close()
            raise InsufficientMemoryError(
                f"the weights of {path.name} cannot be locked in memory; raise the limit of `ulimit -l`, or set mlock=false"
            )
        self._check_kind(path)
        self.n_vocab: int = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.pointer))
        self.n_embd: int = api.llama_model_n_embd_out(self.pointer)
        self.n_layers: int = api.llama_model_n_layer(self.pointer)
        self.n_ctx_train: int = api.llama_model_n_ctx_train(self.pointer)
        self.n_window: int = api.llama_model_n_swa(self.pointer)
        self.n_bytes: int = api.llama_model_size(self.pointer)

    def _check_kind(self, path: Path) -> None:
        api, model = self.api, self.pointer
        if (
            api.llama_model_is_recurrent(model)
            or api.llama_model_is_hybrid(model)
            or api.llama_model_is_diffusion(model)
            or api.llama_model_has_encoder(model)
        ):
            self.close()
            raise UnsupportedModelError(
                f"{path.name} is recurrent, a diffusion model, or has an encoder; edgelm runs decoders whose KV cache can be shared and cut"
            )

    def close(self) -> None:
        """Free the weights; contexts on them must be closed before. Closing twice is allowed."""
        self._finalizer()


@dataclass(frozen=True)
class ContextSettings:
    """What all contexts of one engine have in common.

    Attributes:
        n_threads: threads that compute.
        n_batch: tokens computed at once.
        key_type, value_type: ggml's numbers of the KV cache's formats.
        flash_attention: None leaves the choice to llama.cpp.
    """

    n_threads: int
    n_batch: int
    key_type: int
    value_type: int
    flash_attention: bool | None


@dataclass(frozen=True)
class Tokens:
    """Tokens of one or several sequences, all arrays [n].

    Attributes:
        ids: int32, the tokens.
        positions: int32, each one's place in its sequence.
        slots: int32, the sequence's slot.
        outputs: int32, 1 where an output is wanted, else 0.
    """

    ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    slots: NDArray[np.int32]
    outputs: NDArray[np.int32]

    def __getitem__(self, part: slice | NDArray[np.bool_]) -> Tokens:
        return Tokens(self.ids[part], self.positions[part], self.slots[part], self.outputs[part])


class Context:
    """A KV cache of n_cells positions for n_slots sequences that share it, and the buffers to compute.

    In sliding-window layers llama.cpp gives the cells of tokens that have left the window to others, even where the cache has its full
    size, unless they belong to several sequences. A sequence that is cut back would miss them, so each slot is two sequences there.

    Attributes:
        n_batch: most tokens in one decode.
        n_rows: most outputs in one decode.

    Raises:
        InsufficientMemoryError: llama.cpp cannot allocate it.
        InvalidRequestError: llama.cpp refuses the settings for this model.
    """

    def __init__(self, model: LoadedModel, settings: ContextSettings, n_cells: int, n_slots: int) -> None:
        api = self._api = model.api
        self._model, self._settings = model, settings
        self.n_cells, self.n_slots = n_cells, n_slots
        self._n_ids = ids_per_slot(model)
        self.n_batch = min(settings.n_batch, n_cells)
        self.n_rows = max(n_slots * self._n_ids, min(self.n_batch, _ROW_BYTES // (4 * model.n_vocab)))
        params = api.llama_context_default_params()
        params.n_ctx, params.n_seq_max = n_cells, n_slots * self._n_ids
        params.n_batch = params.n_ubatch = self.n_batch
        params.n_outputs_max = self.n_rows
        params.n_threads = params.n_threads_batch = settings.n_threads
        params.type_k, params.type_v = settings.key_type, settings.value_type
        params.flash_attn_type = _FLASH_ATTENTION[settings.flash_attention]
        params.pooling_type = api.LLAMA_POOLING_TYPE_NONE
        params.kv_unified = params.swa_full = params.no_perf = True
        complaints.clear()
        self._pointer: Any = api.llama_init_from_model(model.pointer, params)
        if not self._pointer:
            reason = complaints.reason()
            error = InsufficientMemoryError if "alloc" in reason else InvalidRequestError
            raise error(f"llama.cpp cannot open a context of {n_cells} tokens: {reason}; ask for a smaller n_ctx or other options")
        self._finalizer = weakref.finalize(self, api.llama_free, self._pointer)
        self._memory: Any = api.llama_get_memory(self._pointer)
        self._hidden = False
        self._make_batch()

    def _make_batch(self) -> None:
        """A llama_batch whose arrays are numpy's."""
        n = self.n_batch
        self._tokens, self._positions = np.empty(n, np.int32), np.empty(n, np.int32)
        self._outputs = np.empty(n, np.int8)
        self._id_counts = np.full(n, self._n_ids, np.int32)
        self._ids = np.empty((n, self._n_ids), np.int32)
        self._id_rows = self._ids.ctypes.data + np.arange(n, dtype=np.uintp) * self._ids.strides[0]
        self._offsets = np.arange(self._n_ids, dtype=np.int32)
        arrays: dict[str, NDArray[Any]] = {
            "token": self._tokens,
            "pos": self._positions,
            "n_seq_id": self._id_counts,
            "seq_id": self._id_rows,
            "logits": self._outputs,
        }
        self._batch = self._api.llama_batch()
        kinds = dict(self._api.llama_batch._fields_)
        for name, array in arrays.items():
            setattr(self._batch, name, array.ctypes.data_as(kinds[name]))

    def decode(self, tokens: Tokens, hidden: bool = False) -> bool:
        """Compute at most n_batch tokens with at most n_rows outputs. False where the cells do not suffice; nothing was computed then.

        Args:
            hidden: give the outputs' hidden states too; all tokens must be outputs then.

        Raises:
            InsufficientMemoryError, BackendUnavailableError: the computation failed. Some of the tokens may have been appended.
        """
        n = len(tokens.ids)
        self._tokens[:n], self._positions[:n], self._outputs[:n] = tokens.ids, tokens.positions, tokens.outputs
        np.add(tokens.slots[:, None] * self._n_ids, self._offsets, out=self._ids[:n])
        self._batch.n_tokens = n
        if hidden != self._hidden:
            self._api.llama_set_embeddings(self._pointer, hidden)
            self._hidden = hidden
        status = self._api.llama_decode(self._pointer, self._batch)
        if status == 0:
            return True
        if status == _NO_SLOT:
            return False
        if status == -2:
            raise InsufficientMemoryError(
                f"llama.cpp lacks memory to compute {n} tokens ({complaints.reason()}); close other programs or set a smaller n_batch"
            )
        what = {2: "was aborted", -1: "was refused as malformed"}.get(status, "failed")
        raise BackendUnavailableError(
            f"llama_decode {what} with status {status} ({complaints.reason()}); open the model again if this goes on"
        )

    def read_logits(self, rows: NDArray[np.float32]) -> None:
        """Copy the outputs' logits into rows [n, n_vocab], contiguous."""
        ctypes.memmove(rows.ctypes.data, self._api.llama_get_logits(self._pointer), rows.nbytes)

    def read_hidden(self, rows: NDArray[np.float32]) -> None:
        """Copy the outputs' hidden states into rows [n, n_embd], contiguous."""
        ctypes.memmove(rows.ctypes.data, self._api.llama_get_embeddings(self._pointer), rows.nbytes)

    def share(self, source: int, target: int, n_tokens: int) -> None:
        """The first n_tokens of slot `source` belong to slot `target` too."""
        for sequence in range(target * self._n_ids, (target + 1) * self._n_ids):
            self._api.llama_memory_seq_cp(self._memory, source * self._n_ids, sequence, 0, n_tokens)

    def cut(self, slot: int, n_tokens: int) -> None:
        """Keep the first n_tokens of the slot."""
        for sequence in range(slot * self._n_ids, (slot + 1) * self._n_ids):
            self._api.llama_memory_seq_rm(self._memory, sequence, n_tokens, -1)

    def enlarged(self, n_cells: int, n_slots: int) -> Context:
        """A larger context that holds the same; this one stays as it is.

        Raises:
            InsufficientMemoryError: it cannot be allocated or filled.
        """
        api = self._api
        state = np.empty(self.state_bytes, np.uint8)
        address = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        saved = api.llama_state_get_data(self._pointer, address, len(state))
        larger = Context(self._model, self._settings, n_cells, n_slots)
        if saved != len(state) or not api.llama_state_set_data(larger._pointer, address, len(state)):
            larger.close()
            raise InsufficientMemoryError(f"llama.cpp cannot move its KV cache to a larger one: {complaints.reason()}")
        return larger

    @property
    def state_bytes(self) -> int:
        """Of all that the KV cache holds."""
        return int(self._api.llama_state_get_size(self._pointer))

    def close(self) -> None:
        """Free it. Closing twice is allowed."""
        self._finalizer()


def ids_per_slot(model: LoadedModel) -> int:
    """llama.cpp's sequences that one slot takes."""
    return 2 if model.n_window else 1
