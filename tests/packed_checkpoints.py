"""Writes tiny Hugging Face folders whose linear layers are packed as AWQ, GPTQ and compressed-tensors do it, value by value in plain loops.

`write_packed(folder, Packing("gptq", bits=8), class_name)` returns the layers, of which `Layer.values()` is what must be read back.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tiny_folders import weights, write_folder, write_json

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
SCALE_TYPES = {"F16": np.float16, "BF16": ml_dtypes.bfloat16, "F32": np.float32}


@dataclass(frozen=True)
class Packing:
    """How a checkpoint is packed.

    Attributes:
        method: "awq", "gptq", "gptq_v2" or "compressed-tensors".
        group_size: columns, or -1 for the whole row.
        act_order: columns belong to groups in a random order.
        coarse: scales are powers of two, of which any small multiple is a float16.
        listed: write g_idx although the groups are in order.
    """

    method: str
    bits: int = 4
    symmetric: bool = True
    group_size: int = 32
    act_order: bool = False
    scale_type: str = "F16"
    coarse: bool = False
    listed: bool = False

    @property
    def config(self) -> dict[str, Any]:
        """What config.json says of it."""
        if self.method == "awq":
            keys = {"zero_point": not self.symmetric, "version": "gemm"}
            return {"quant_method": "awq", "bits": self.bits, "group_size": self.group_size, **keys}
        if self.method.startswith("gptq"):
            keys = {"desc_act": self.act_order, "sym": self.symmetric, "checkpoint_format": self.method}
            return {"quant_method": "gptq", "bits": self.bits, "group_size": self.group_size, **keys}
        group = {
            "num_bits": self.bits,
            "type": "int",
            "symmetric": self.symmetric,
            "strategy": "channel" if self.group_size == -1 else "group",
            "group_size": None if self.group_size == -1 else self.group_size,
            "actorder": "group" if self.act_order else None,
        }
        groups = {"group_0": {"targets": ["Linear"], "weights": group, "input_activations": None}}
        return {"quant_method": self.method, "format": "pack-quantized", "config_groups": groups, "ignore": ["lm_head"]}


@dataclass(frozen=True)
class Layer:
    """Codes and zero points count from 0; shapes as edgelm.quant.huggingface_packed.GroupedCodes has them."""

    codes: NDArray[np.int64]
    zeros: NDArray[np.int64]
    scales: NDArray[Any]
    groups: list[int]

    def values(self) -> NDArray[np.float32]:
        n_out, n_in = self.codes.shape
        values = np.zeros((n_out, n_in), np.float32)
        for n in range(n_out):
            for k, group in enumerate(self.groups):
                values[n, k] = np.float32(self.scales[n, group]) * np.float32(self.codes[n, k] - self.zeros[n, group])
        return values


def random_layer(packing: Packing, n_out: int, n_in: int, rng: np.random.Generator) -> Layer:
    size = n_in if packing.group_size == -1 else packing.group_size
    groups = [k // size for k in range(n_in)]
    n_groups = max(groups) + 1
    if packing.act_order:
        groups = [int(group) for group in rng.permutation(groups)]
    middle, top = 1 << (packing.bits - 1), (1 << packing.bits) - 1
    # The first version of GPTQ's format cannot hold a zero point of 0.
    zeros = np.full((n_out, n_groups), middle) if packing.symmetric else rng.integers(1, top + 1, (n_out, n_groups))
    scales = rng.uniform(0.01, 0.1, (n_out, n_groups))
    if packing.coarse:
        scales = 2.0 ** np.floor(np.log2(scales))
    scales = scales.astype(SCALE_TYPES[packing.scale_type])
    return Layer(rng.integers(0, top + 1, (n_out, n_in)), zeros, scales, groups)


def _word(codes: list[int], bits: int) -> int:
    """The codes in one int32, the first lowest."""
    word = 0
    for i, code in enumerate(codes):
        word |= code << (bits * i)
    return word - (1 << 32) if word >= 1 << 31 else word


def _pack(rows: NDArray[np.int64], bits: int, order: tuple[int, ...] | None = None) -> NDArray[np.int32]:
    """Words along the last dimension, int32 [n, ceil(m bits / 32)]; the last one is filled with zeros."""
    per_word = 32 // bits
    packed = []
    for row in rows.tolist():
        row += [0] * (-len(row) % per_word)
        words = [row[at : at + per_word] for at in range(0, len(row), per_word)]
        packed.append([_word([word[place] for place in order] if order else word, bits) for word in words])
    return np.array(packed, np.int32)


def pack_layer(packing: Packing, layer: Layer) -> dict[str, NDArray[Any]]:
    """The layer's tensors by what follows its name."""
    bits = packing.bits
    order = np.array(layer.groups, np.int32)
    if packing.method == "awq":
        return {
            "qweight": _pack(layer.codes.T, bits, AWQ_ORDER),
            "qzeros": _pack(layer.zeros.T, bits, AWQ_ORDER),
            "scales": np.ascontiguousarray(layer.scales.T),
        }
    if packing.method.startswith("gptq"):
        parts: dict[str, NDArray[Any]] = {
            "qweight": np.ascontiguousarray(_pack(layer.codes, bits).T),
            "qzeros": _pack(layer.zeros.T - (packing.method == "gptq"), bits),
            "scales": np.ascontiguousarray(layer.scales.T),
        }
        return parts | ({"g_idx": order} if packing.act_order or packing.listed else {})
    parts = {
        "weight_packed": _pack(layer.codes, bits),
        "weight_scale": layer.scales,
        "weight_shape": np.array(layer.codes.shape, np.int64),
    }
    if not packing.symmetric:
        parts["weight_zero_point"] = np.ascontiguousarray(_pack(layer.zeros.T, bits).T)
    return parts | ({"weight_g_idx": order} if packing.act_order or packing.listed else {})


def packed_tensors(packing: Packing, class_name: str) -> tuple[dict[str, NDArray[Any]], dict[str, Layer]]:
    """All tensors of a tiny model, and its packed layers by the names of their weights."""
    rng = np.random.default_rng(0)
    tensors: dict[str, NDArray[Any]] = {}
    layers: dict[str, Layer] = {}
    for name, values in weights(class_name, "F16").items():
        if "_proj.weight" in name:
            layers[name] = random_layer(packing, *values.shape, rng)
            layer = name.removesuffix(".weight")
            tensors |= {f"{layer}.{part}": array for part, array in pack_layer(packing, layers[name]).items()}
        else:
            tensors[name] = values
    return tensors, layers


def write_packed(folder: Path, packing: Packing, class_name: str = "MistralForCausalLM") -> dict[str, Layer]:
    """Write a whole folder, and give its packed layers."""
    write_folder(folder, class_name, quantization_config=packing.config)
    tensors, layers = packed_tensors(packing, class_name)
    save_file(tensors, folder / "model.safetensors")
    return layers


def change_config(folder: Path, **changes: Any) -> None:
    """Change keys of quantization_config."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"].update(changes)
    write_json(path, config)
