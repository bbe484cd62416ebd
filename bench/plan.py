"""What a wished speed needs of a device, by arithmetic alone, and how far a device is from it.

Two counts of the bytes of one token stand side by side. That of the whole model takes every matrix, as one does by hand with a file's size.
The exact one leaves out the embedding's rows that are not looked up, and adds norms, biases and the KV cache of the context.
Exact bytes decide what a device can reach.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from edgelm.bench.record import TokenCost
from edgelm.bench.shapes import find_format, shape_metadata, tensor_sizes
from edgelm.bench.token_cost import TensorSize, attention_macs, mean_context, read_token_cost, token_cost
from edgelm.errors import InvalidRequestError, UnsupportedModelError
from edgelm.quant.model_file import ModelFile

KV_BYTES = 2
"""Of one key or value: float16, as edgelm's CPU engine and llama.cpp keep them unless told otherwise."""


@dataclass(frozen=True)
class PlannedModel:
    """Sizes of the model that is planned for.

    Attributes:
        name, format: of the model, and of most of its weights.
        cost: what one token costs.
        weight_bytes: that a decoded token reads.
        matrix_bytes: of all matrices, the embedding included.
        row_lengths: lengths of the rows of its linear layers, which the blocks of a number format must divide.
    """

    name: str
    format: str
    cost: TokenCost
    weight_bytes: int
    matrix_bytes: int
    row_lengths: frozenset[int]

    @property
    def kv_bytes(self) -> int:
        """What one token adds to the KV cache."""
        n_layers = self.cost.n_layers + self.cost.n_window_layers
        return 2 * n_layers * self.cost.n_kv_heads * self.cost.head_dim * KV_BYTES


@dataclass(frozen=True)
class Target:
    """What is wished for.

    Attributes:
        tokens_per_s: of one user, decoded one by one.
        depth: tokens in the context.
        watts: that the device may take; None if it does not matter.
    """

    tokens_per_s: float
    depth: int = 0
    watts: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.tokens_per_s < float("inf"):
            raise InvalidRequestError(f"{self.tokens_per_s} tokens per second cannot be planned for; give a number above 0")
        if self.watts is not None and not 0 < self.watts < float("inf"):
            raise InvalidRequestError(f"{self.watts} W cannot be planned for; give a number above 0, or leave it out")
        if self.depth < 0:
            raise InvalidRequestError(f"the depth is {self.depth}; give 0 or more tokens")


@dataclass(frozen=True)
class Needs:
    """What a target needs.

    Attributes:
        whole_bytes_per_token, whole_bytes_per_s: every matrix counted once for each token, no KV cache.
        weight_bytes_per_token: of weights, what is read.
        kv_bytes_per_token: of the context's keys and values, what is read.
        bytes_per_s: both, at the wished speed.
        macs_per_token, macs_per_s: multiplications, those of attention included.
        joules_per_token: that the watts leave for a token; None without watts.
    """

    whole_bytes_per_token: int
    whole_bytes_per_s: float
    weight_bytes_per_token: int
    kv_bytes_per_token: int
    bytes_per_s: float
    macs_per_token: float
    macs_per_s: float
    joules_per_token: float | None

    @property
    def bytes_per_token(self) -> int:
        return self.weight_bytes_per_token + self.kv_bytes_per_token


@dataclass(frozen=True)
class Device:
    """What a device has.

    Attributes:
        bytes_per_s: of memory.
        macs_per_s: int8 multiplications; None if not known.
        source: where the figures are from.
        cache_bytes, memory_bytes: of the last-level caches, of the memory; None if not known.
    """

    bytes_per_s: float
    macs_per_s: float | None
    source: str
    cache_bytes: int | None = None
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.bytes_per_s < float("inf"):
            raise InvalidRequestError(f"a bandwidth of {self.bytes_per_s / 1e9:g} GB/s cannot be planned with; give a number above 0")


@dataclass(frozen=True)
class Reach:
    """The speed that a device can reach at most.

    Attributes:
        memory_tokens_per_s, arithmetic_tokens_per_s: by each limit; None if it is not known.
        gap: the wished speed over the lower of them; at most 1 if the target is within reach.
    """

    memory_tokens_per_s: float
    arithmetic_tokens_per_s: float | None
    tokens_per_s: float
    gap: float


def shape_model(name: str, format_name: str) -> PlannedModel:
    """A published shape in a number format.

    Raises:
        InvalidRequestError: no such shape or format, or its blocks do not divide the shape's rows.
    """
    sizes = tensor_sizes(name, format_name)
    return _planned(name, find_format(format_name).name, token_cost(shape_metadata(name), sizes), sizes)


def file_model(model: ModelFile) -> PlannedModel:
    """A model's file. Its format is that of most weights.

    Raises:
        UnsupportedModelError: its tensors or its architecture do not tell what a token costs.
    """
    cost = read_token_cost(model)
    if cost is None or cost.weight_bytes is None:
        raise UnsupportedModelError(
            f"{model.path} does not tell what a token costs: give a GGUF file of an architecture that edgelm knows, or --shape"
        )
    sizes = [TensorSize(tensor.name, tensor.shape, tensor.format) for tensor in model.tensors.values()]
    n_weights: Counter[str] = Counter()
    for size in sizes:
        n_weights[size.format.name] += prod(size.shape)
    return _planned(model.path.name, n_weights.most_common(1)[0][0], cost, sizes)


def _planned(name: str, format_name: str, cost: TokenCost, sizes: Iterable[TensorSize]) -> PlannedModel:
    matrices = [size for size in sizes if len(size.shape) > 1]
    rows = frozenset(size.shape[-1] for size in matrices)
    return PlannedModel(name, format_name, cost, cost.weight_bytes or 0, sum(size.n_bytes for size in matrices), rows)


def needs(model: PlannedModel, target: Target) -> Needs:
    """What the target needs of any device."""
    context = mean_context(model.cost, target.depth, 1)  # it reads the keys and values of `depth` tokens, and its own
    kv_bytes = round(model.kv_bytes * context)
    macs = model.cost.n_weights + attention_macs(model.cost, context)
    return Needs(
        whole_bytes_per_token=model.matrix_bytes,
        whole_bytes_per_s=model.matrix_bytes * target.tokens_per_s,
        weight_bytes_per_token=model.weight_bytes,
        kv_bytes_per_token=kv_bytes,
        bytes_per_s=(model.weight_bytes + kv_bytes) * target.tokens_per_s,
        macs_per_token=macs,
        macs_per_s=macs * target.tokens_per_s,
        joules_per_token=None if target.watts is None else target.watts / target.tokens_per_s,
    )


@dataclass(frozen=True)
class Plan:
    """A target, a model and a device, and how they fit together."""

    model: PlannedModel
    target: Target
    device: Device
    need: Needs
    reach: Reach

    @property
    def fits_cache(self) -> bool:
        """Whether a token's weights fit the last-level caches, so that memory's speed is not their limit."""
        return self.device.cache_bytes is not None and self.need.weight_bytes_per_token <= self.device.cache_bytes

    @property
    def memory_bytes(self) -> int:
        """What the model takes at least: its matrices, and the KV cache of one context."""
        return self.model.matrix_bytes + self.model.kv_bytes * self.target.depth


def make_plan(model: PlannedModel, target: Target, device: Device) -> Plan:
    """What the target needs, and what the device can reach of it."""
    need = needs(model, target)
    return Plan(model, target, device, need, _reach(need, target, device))


def _reach(need: Needs, target: Target, device: Device) -> Reach:
    """The speed of one sequence that the device's limits allow."""
    memory = device.bytes_per_s / need.bytes_per_token
    arithmetic = None if device.macs_per_s is None else device.macs_per_s / need.macs_per_token
    lowest = memory if arithmetic is None else min(memory, arithmetic)
    return Reach(memory, arithmetic, lowest, target.tokens_per_s / lowest)
