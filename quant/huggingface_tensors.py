"""Hugging Face tensors under GGUF names, with the changes that llama.cpp's convert_hf_to_gguf.py makes to their values."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import ModelFileError, UnsupportedModelError
from edgelm.quant.blocks import F32
from edgelm.quant.huggingface_config import Architecture, HuggingFaceConfig
from edgelm.quant.huggingface_packed import PackedLayer
from edgelm.quant.model_file import Tensor
from edgelm.quant.packed_layouts import Layout, Parts, type_name
from edgelm.quant.safetensors_file import DTYPES

_MODEL_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_SANDWICH_NAMES = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_LAYER = re.compile(r"model\.layers\.(0|[1-9][0-9]{0,5})\.(.+)\.(weight|bias)")
_OUTSIDE = re.compile(r"(.+)\.(weight|bias)")


def gguf_name(name: str, architecture: Architecture) -> str | None:
    """The GGUF name of a Hugging Face tensor; None for a buffer that GGUF does not store.

    Raises:
        UnsupportedModelError: the architecture has no such tensor.
    """
    if name.endswith((".rotary_emb.inv_freq", ".attention.masked_bias", ".attention.bias")):
        return None
    if match := _LAYER.fullmatch(name):
        layer, part, kind = match.groups()
        names = _LAYER_NAMES | _SANDWICH_NAMES if architecture.sandwich else _LAYER_NAMES
        if part in names:
            return f"blk.{layer}.{names[part]}.{kind}"
    elif (match := _OUTSIDE.fullmatch(name)) and match[1] in _MODEL_NAMES:
        return f"{_MODEL_NAMES[match[1]]}.{match[2]}"
    raise UnsupportedModelError(f"the tensor {name[:200]!r} is not part of a {architecture.name} model that edgelm runs")


def join_packed(
    tensors: Mapping[str, Tensor], integers: Mapping[str, NDArray[Any]], layout: Layout | None, where: str
) -> dict[str, Tensor | PackedLayer]:
    """Everything that the files hold, under Hugging Face names, with the parts of each packed layer in one.

    Raises:
        ModelFileError: a layer lacks a part, or its parts do not go together.
        UnsupportedModelError: integers that are part of no packed layer.
    """
    left: dict[str, Tensor | NDArray[Any]] = {**tensors, **integers}
    joined: dict[str, Tensor | PackedLayer] = {}
    if layout is not None:
        joined |= _take_packed(left, layout, where)
    for name, tensor in left.items():
        if name in joined:
            raise ModelFileError(f"{where}: the tensor {name!r} is there both packed and plain; fetch it again")
        if not isinstance(tensor, Tensor):
            raise UnsupportedModelError(f"{where}: the tensor {name!r} has the type {type_name(tensor)}; edgelm reads {', '.join(DTYPES)}")
        joined[name] = tensor
    return joined


def _take_packed(left: dict[str, Tensor | NDArray[Any]], layout: Layout, where: str) -> dict[str, PackedLayer]:
    """The packed layers by the names of their weights; their parts are taken out of `left`."""
    layers = [name.removesuffix(f".{layout.codes}") for name in left if name.endswith(f".{layout.codes}")]
    packed: dict[str, PackedLayer] = {}
    for layer in layers:
        names = {part: f"{layer}.{part}" for part in (layout.codes, *layout.others)}
        parts = Parts(layer, where, {part: left.pop(name) for part, name in names.items() if name in left})
        packed[f"{layer}.weight"] = layout.open(parts)
    return packed


class ConvertedTensors(Mapping[str, Tensor]):
    """Tensors by GGUF name, each converted when it is asked for, so that copies live no longer than their user needs them.

    Args:
        sources: tensors and packed layers under Hugging Face names.
        config: of the model.
        where: the folder, for messages.

    Raises:
        ModelFileError: two tensors have one name, or the output layer is missing.
        UnsupportedModelError: a tensor that the architecture does not have.
    """

    def __init__(self, sources: Mapping[str, Tensor | PackedLayer], config: HuggingFaceConfig, where: str) -> None:
        self._config, self._where = config, where
        self._sources: dict[str, Tensor | PackedLayer] = {}
        for name, tensor in sources.items():
            target = gguf_name(name, config.architecture)
            if target is None or (target == "output.weight" and config.tied):
                continue
            if target in self._sources:
                raise ModelFileError(f"{where}: the tensors {self._sources[target].name!r} and {name!r} are the same one; fetch it again")
            if 0 in tensor.shape or not 1 <= len(tensor.shape) <= 2:
                raise ModelFileError(f"{where}: the tensor {name!r} has the shape {tensor.shape}, not one or two sizes; fetch it again")
            self._sources[target] = tensor
        if config.tied is False and "output.weight" not in self._sources:
            raise ModelFileError(f"{where}: the tensor 'lm_head.weight' is missing, and config.json does not tie it; fetch it again")
        for target, factors in config.rope_factors.items():
            self._sources[target] = _f32(target, factors)

    def __len__(self) -> int:
        return len(self._sources)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __contains__(self, name: object) -> bool:
        return name in self._sources

    def __getitem__(self, name: str) -> Tensor:
        source = self._sources[name]
        if isinstance(source, PackedLayer):
            source = source.tensor()
        change = self._change(name)
        if change is None:
            return Tensor(name, source.shape, source.format, source.data)
        return change(name, source)

    def notes(self) -> dict[str, str]:
        """Why a packed layer is read in a larger format than it is stored in, by the tensor's name.

        Raises: as PackedLayer.note.
        """
        packed = {name: source.note() for name, source in self._sources.items() if isinstance(source, PackedLayer)}
        return {name: note for name, note in packed.items() if note}

    def _change(self, name: str) -> Callable[[str, Tensor], Tensor] | None:
        part = name.split(".")[-2]
        if part.endswith("_norm"):
            return self._norm
        if self._config.architecture.permute and part in ("attn_q", "attn_k"):
            return self._permuted
        return self._vector if name.endswith(".bias") else None

    def _norm(self, name: str, source: Tensor) -> Tensor:
        return _f32(name, source.dequantize() + np.float32(self._config.architecture.norm_offset))

    def _vector(self, name: str, source: Tensor) -> Tensor:
        return _f32(name, source.dequantize())

    def _permuted(self, name: str, source: Tensor) -> Tensor:
        """Rows in GGUF's order: within each head, row i of the first half and row i of the second become neighbours."""
        n_heads = self._config.n_heads if ".attn_q." in name else self._config.n_kv_heads
        n_rows = source.shape[0]
        if n_rows % (2 * n_heads):
            raise ModelFileError(
                f"{self._where}: the tensor {source.name!r} has {n_rows} rows, not two halves for each of {n_heads} heads; fetch it again"
            )
        if len(source.shape) == 1:
            source = _f32(name, source.dequantize())
        halves = source.data.reshape(n_heads, 2, n_rows // (2 * n_heads), -1)
        return Tensor(name, source.shape, source.format, halves.swapaxes(1, 2).reshape(-1))


def _f32(name: str, values: NDArray[np.float32]) -> Tensor:
    return Tensor(name, values.shape, F32, np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint8))
