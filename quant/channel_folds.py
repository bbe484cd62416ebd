"""Where a block's linear layers can exchange a diagonal: W diag(s) takes inputs divided by s, which whatever feeds W can give.

    attn_norm          ->  q, k, v      the norm's weight is divided
    v (rows, bias)     ->  attn_output  attention mixes values over tokens, channel by channel
    ffn_norm           ->  gate, up     the norm's weight is divided
    up (rows, bias)    ->  ffn_down     act(gate) * up is linear in up; gate's rows stay, for the activation is not linear

The block computes the same as before, up to float32 rounding. GGUF stores the weights of Gemma's norms with their 1 already added, so that
they divide like any other. Norms that come after a layer (post_attention_norm, post_ffw_norm) or act on q and k stand in no fold's way.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import InvalidRequestError, ModelFileError
from edgelm.quant.blocks import F32
from edgelm.quant.model_file import Tensor

Array = NDArray[np.float32]


@dataclass(frozen=True)
class HeadSizes:
    """How attention splits its channels: n_heads / n_kv_heads neighbouring heads share one head of v."""

    n_heads: int
    n_kv_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        if min(self.n_heads, self.n_kv_heads, self.head_dim) < 1 or self.n_heads % self.n_kv_heads:
            raise InvalidRequestError(f"{self} makes no sense: give positive sizes, and heads in multiples of the KV heads")


@dataclass(frozen=True)
class Rows:
    """Rows of a weight, or elements of a vector, from `start` on."""

    name: str
    start: int = 0


@dataclass(frozen=True, eq=False)
class Fold:
    """One exchange of factors.

    Attributes:
        name: what feeds what ("attn_norm -> q, k, v").
        consumers: GGUF names of the weights [n_out, n_in] whose columns are multiplied.
        producers: what is divided, n_channels rows or elements of each.
        source: int64 [n_in], the producers' channel that input i of the consumers is, or is mixed from; every channel occurs.
        obstacle: why the fold cannot be made; "" where it can.
    """

    name: str
    consumers: tuple[str, ...]
    producers: tuple[Rows, ...]
    source: NDArray[np.int64]
    obstacle: str = ""

    @property
    def n_channels(self) -> int:
        return int(self.source.max(initial=-1)) + 1

    @property
    def changes(self) -> frozenset[str]:
        """Names of the tensors that change."""
        return frozenset((*self.consumers, *(rows.name for rows in self.producers)))

    def change(self, tensor: Tensor, factors: Array) -> Tensor:
        """A consumer with its columns times factors [n_channels], or a producer with its rows divided by them, in F32."""
        values = tensor.dequantize()
        if tensor.name in self.consumers:
            return _float32(tensor.name, values * factors[self.source])
        for rows in self.producers:
            if rows.name == tensor.name:
                part = values[rows.start : rows.start + len(factors)]
                part /= factors.reshape(-1, *[1] * (part.ndim - 1))
        return _float32(tensor.name, values)

    def apply(self, tensors: Mapping[str, Tensor], factors: Array) -> dict[str, Tensor]:
        """The tensors that change."""
        return {name: self.change(tensors[name], factors) for name in self.changes}


def folds_of(tensors: Mapping[str, Tensor], layer: int, heads: HeadSizes) -> tuple[Fold, ...]:
    """The four folds of one block, in the order of the forward pass; one that cannot be made says why.

    Args:
        tensors: by GGUF name, the block's among them. The block must be one that the forward pass (backends/weights.py) accepts: a tensor
            unknown there, such as a norm between v and the attention's output, would make a fold wrong.

    Raises:
        ModelFileError: the shapes of the block's tensors do not go together.
    """
    prefix = f"blk.{layer}."
    block = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    folds = (
        _norm_fold(block, "attn_norm", ("attn_q", "attn_k", "attn_v", "attn_qkv")),
        _values_fold(block, heads),
        _norm_fold(block, "ffn_norm", ("ffn_gate", "ffn_up")),
        _gated_fold(block),
    )
    return tuple(_in_block(fold, block, prefix) for fold in folds)


def model_folds(tensors: Mapping[str, Tensor], n_layers: int, heads: HeadSizes, kept: Collection[str]) -> list[Fold]:
    """Those of all blocks, in order, without those that nothing takes the channels of.

    Args:
        kept: names of tensors that must stay as they are, which is an obstacle to their folds.

    Raises:
        ModelFileError: as folds_of.
    """
    folds = [fold for layer in range(n_layers) for fold in folds_of(tensors, layer, heads) if fold.consumers]
    return [_with_obstacle(fold, sorted(fold.changes.intersection(kept))) for fold in folds]


def _with_obstacle(fold: Fold, kept: list[str]) -> Fold:
    return replace(fold, obstacle=f"{kept[0]} is kept as it is") if kept and not fold.obstacle else fold


Block = Mapping[str, Tensor]  # one block's tensors by their names within it


def _norm_fold(block: Block, norm: str, linears: tuple[str, ...]) -> Fold:
    consumers = tuple(f"{name}.weight" for name in linears if f"{name}.weight" in block)
    name = f"{norm} -> {', '.join(linear for linear in linears if f'{linear}.weight' in block)}"
    return _fold(block, name, consumers, ((norm, 0),))


def _values_fold(block: Block, heads: HeadSizes) -> Fold:
    n_q, n_kv = heads.n_heads * heads.head_dim, heads.n_kv_heads * heads.head_dim
    channels = np.arange(n_kv).reshape(heads.n_kv_heads, 1, heads.head_dim)
    source = np.repeat(channels, heads.n_heads // heads.n_kv_heads, axis=1).reshape(-1)
    values = ("attn_qkv", n_q + n_kv) if "attn_qkv.weight" in block else ("attn_v", 0)
    return _fold(block, f"{values[0]} -> attn_output", ("attn_output.weight",), (values,), source)


def _gated_fold(block: Block) -> Fold:
    name, down, up = "ffn_up -> ffn_down", block.get("ffn_down.weight"), block.get("ffn_up.weight")
    if down is None or up is None or "ffn_gate.weight" in block:
        return _fold(block, name, ("ffn_down.weight",), (("ffn_up", 0),))
    n_ff = down.shape[1]
    if up.shape[0] == n_ff:
        return Fold(name, (), (), np.arange(n_ff), "there is no gate, so the activation stands between up and down")
    return _fold(block, name, ("ffn_down.weight",), (("ffn_up", n_ff),))  # gate and up in one matrix, gate first


def _fold(
    block: Block, name: str, consumers: tuple[str, ...], producers: tuple[tuple[str, int], ...], source: NDArray[np.int64] | None = None
) -> Fold:
    """The fold into the weights, and the biases where there are some, of `producers`."""
    rows = [Rows(f"{part}.{kind}", start) for part, start in producers for kind in ("weight", "bias")]
    missing = [each for each in (*consumers, *(f"{part}.weight" for part, _ in producers)) if each not in block]
    n_in = block[consumers[0]].shape[-1] if consumers and not missing else 0
    obstacle = f"the block has no {missing[0]}" if missing else "" if consumers else "the block has no layer that takes its output"
    return Fold(
        name, consumers, tuple(each for each in rows if each.name in block), np.arange(n_in) if source is None else source, obstacle
    )


def _in_block(fold: Fold, block: Block, prefix: str) -> Fold:
    """The fold with full names, its shapes checked."""
    consumers = tuple(prefix + name for name in fold.consumers)
    producers = tuple(Rows(prefix + rows.name, rows.start) for rows in fold.producers)
    if not fold.obstacle:
        for name in fold.consumers:
            if block[name].shape[1:] != fold.source.shape:
                raise _misfit(prefix + name, block[name], f"{len(fold.source)} columns")
        for rows in fold.producers:
            if block[rows.name].shape[0] != rows.start + fold.n_channels:
                raise _misfit(prefix + rows.name, block[rows.name], f"{rows.start + fold.n_channels} rows")
    return Fold(fold.name, consumers, producers, fold.source, fold.obstacle)


def _misfit(name: str, tensor: Tensor, wanted: str) -> ModelFileError:
    return ModelFileError(f"tensor {name} has shape {tensor.shape}, but its neighbours call for {wanted}; fetch or convert the file again")


def _float32(name: str, values: Array) -> Tensor:
    return Tensor(name, values.shape, F32, np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint8))
