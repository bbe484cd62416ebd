"""The format that each tensor gets when the user names one: names of formats, exceptions by pattern, and widths that do not fit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType

from edgelm.errors import InvalidRequestError
from edgelm.quant.block_format import BlockFormat
from edgelm.quant.blocks import F16, F32, FORMATS, IQ4_NL, IQ4_XS, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0

EMBEDDING = "token_embd.weight"
OUTPUT = "output.weight"

# What stands in where rows are not whole blocks of 256: the 32-element format nearest in bytes, and of equals the more exact, so that
# the file keeps its size. llama.cpp takes the next larger one instead: Q4_K to Q5_0 is 22% more bytes, Q6_K to Q8_0 30%.
STAND_INS: Mapping[str, BlockFormat] = MappingProxyType({IQ4_XS.name: IQ4_NL, Q4_K.name: IQ4_NL, Q5_K.name: Q5_0, Q6_K.name: Q5_1})

_BLOCK = re.compile(r"^blk\.\d+\.")

# llama.cpp's mixtures and about how many bits per weight their files have (for Llama 2 7B).
_MIXTURES = {"Q4_K_S": 4.6, "Q4_K_M": 4.8, "Q5_K_S": 5.5, "Q5_K_M": 5.7}


@dataclass(frozen=True)
class Resolved:
    """A tensor's format.

    Attributes:
        format: what the tensor is stored as.
        reason: why, for people.
        is_stand_in: the format that was asked for cannot hold the tensor; to be said aloud.
    """

    format: BlockFormat
    reason: str
    is_stand_in: bool = False


@dataclass(frozen=True)
class FormatRules:
    """Which tensor gets which format.

    The embedding and the output layer are stored as Q8_0 unless told otherwise, or as the default where that is larger: each token
    reads a single row of the embedding, so that its bits cost no time, and the error of the output layer, or of an embedding that
    serves as one, enters the logits with no layer behind it to even it out.

    Attributes:
        default: of every matrix that nothing else speaks of.
        embedding: of token_embd.weight, which is the output layer too where the model ties them; None for the rule above.
        output: of output.weight; None for the rule above.
        overrides: (pattern, format); patterns are shell globs over GGUF names, such as "blk.*.ffn_down.weight". They win over all
            of the above, and a later one over an earlier one.
    """

    default: BlockFormat
    embedding: BlockFormat | None = None
    output: BlockFormat | None = None
    overrides: tuple[tuple[str, BlockFormat], ...] = ()

    def resolve(self, name: str, shape: Sequence[int]) -> Resolved:
        """The format of a tensor.

        Vectors (norms, biases, factors of the rotary embedding) stay F32 whatever the rules say: they are small, and engines
        read them as such.

        Args:
            name: GGUF name.
            shape: slowest dimension first.
        """
        if is_vector(name, shape):
            return Resolved(F32, "vectors stay F32")
        wanted, reason = self._wanted(name)
        return _fitted(wanted, reason, shape[-1])

    def check_patterns(self, names: Iterable[str]) -> None:
        """
        Raises:
            InvalidRequestError: a pattern fits none of the names, as one that was misspelt.
        """
        present = list(names)
        for pattern, block_format in self.overrides:
            if not any(fnmatchcase(name, pattern) for name in present):
                kinds = ", ".join(dict.fromkeys(_BLOCK.sub("blk.*.", name) for name in present))
                raise InvalidRequestError(f"no tensor fits the pattern {pattern!r} for {block_format.name}; the model has {kinds}")

    def named(self, name: str) -> BlockFormat | None:
        """The format that was asked for by the tensor's name, not by the default; None where none was."""
        for pattern, block_format in reversed(self.overrides):
            if fnmatchcase(name, pattern):
                return block_format
        return {EMBEDDING: self.embedding, OUTPUT: self.output}.get(name)

    def _wanted(self, name: str) -> tuple[BlockFormat, str]:
        for pattern, block_format in reversed(self.overrides):
            if fnmatchcase(name, pattern):
                return block_format, f"asked for by the pattern {pattern}"
        if name in (EMBEDDING, OUTPUT):
            what, given = ("the embedding", self.embedding) if name == EMBEDDING else ("the output layer", self.output)
            if given is not None:
                return given, f"asked for {what}"
            return max(Q8_0, self.default, key=bits_per_weight), f"{what} is kept finer"
        return self.default, "the default"


def is_vector(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor is no matrix of a linear layer or embedding, and stays F32."""
    return len(shape) < 2 or not name.endswith(".weight") or name.endswith("_norm.weight")


def bits_per_weight(block_format: BlockFormat) -> float:
    return 8 * block_format.n_bytes / block_format.n_elements


def parse_format(text: str) -> BlockFormat:
    """A format by its name, in any case.

    Raises:
        InvalidRequestError: no such format; the text says which there are.
    """
    name = text.strip().upper()
    if name in FORMATS:
        return FORMATS[name]
    if name in _MIXTURES:
        raise InvalidRequestError(
            f"{text} is no format, but one of llama.cpp's mixtures of several; give {name[:4].lower()} for the plain format, "
            f"or --bits-per-weight {_MIXTURES[name]} for a mixture of that size chosen by measured error"
        )
    raise InvalidRequestError(f"there is no format {text!r}; choose one of {', '.join(FORMATS)}")


def parse_override(text: str) -> tuple[str, BlockFormat]:
    """An exception to the rules, written "PATTERN=FORMAT".

    Raises:
        InvalidRequestError: it is not written so, or there is no such format.
    """
    pattern, sign, name = text.rpartition("=")
    if not sign or not pattern.strip():
        raise InvalidRequestError(f"{text!r} is not PATTERN=FORMAT; write for example 'blk.*.ffn_down.weight=q5_0'")
    return pattern.strip(), parse_format(name)


def _fitted(wanted: BlockFormat, reason: str, width: int) -> Resolved:
    """The format, or what stands in for it where rows of this width are not whole blocks."""
    candidates = (wanted, STAND_INS.get(wanted.name, F16), F16)
    candidate = next(c for c in candidates if width % c.n_elements == 0)
    if candidate is wanted:
        return Resolved(wanted, reason)
    return Resolved(
        candidate,
        f"{reason} is {wanted.name}, but rows of {width} are not whole blocks of {wanted.n_elements}: "
        f"{candidate.name}, {bits_per_weight(candidate):.4g} bits per weight instead of {bits_per_weight(wanted):.4g}",
        is_stand_in=True,
    )
