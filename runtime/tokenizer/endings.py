"""Which tokens begin and end text, and which end the model's answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.runtime.tokenizer.vocabulary import Kind, Vocabulary

# Texts by which llama.cpp knows tokens that the file does not point out, in the order of preference.
_END_OF_TURN = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>", "_<EOT>", "[EOT]"),
    *("<｜end▁of▁sentence｜>", "<end_of_utterance>"),
)
_END_OF_MESSAGE = ("<|eom_id|>",)
_FILL_IN = {
    "fim_pre": (
        *("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>", "<|prefix|>"),
    ),
    "fim_suf": (*("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|code_suffix|>", "<|suffix|>"),),
    "fim_mid": (*("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>", "<|middle|>"),),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
_END_OF_GENERATION = (
    *_END_OF_TURN,
    *_END_OF_MESSAGE,
    *("<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "</s>", "[EOS]", "<eos>", "<turn|>", "<|tool_response>", "[e~["),
)
_ALWAYS_SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")
_OLD_KEYS = {"fim_pre": "prefix_token_id", "fim_suf": "suffix_token_id", "fim_mid": "middle_token_id"}


@dataclass(frozen=True)
class Endings:
    """Tokens at the ends of texts.

    Attributes:
        bos_id, eos_id: the first and the last token of a text; None where the model has none.
        eog_ids: those that end the model's answer.
    """

    bos_id: int | None
    eos_id: int | None
    eog_ids: frozenset[int]


def token_id(metadata: Mapping[str, Any], name: str, n_vocab: int, default: int | None = None) -> int | None:
    """The token that tokenizer.ggml.<name> points out; the default where the key is missing or points outside the vocabulary."""
    value = metadata.get(f"tokenizer.ggml.{name}")
    for candidate in (value, default):
        if isinstance(candidate, int) and not isinstance(candidate, bool) and 0 <= candidate < n_vocab:
            return candidate
    return None


def find_special_tokens(
    vocabulary: Vocabulary, metadata: Mapping[str, Any], default_bos: int | None, default_eos: int | None
) -> tuple[Vocabulary, Endings]:
    """Find the tokens that begin and end text, as llama.cpp does: by their keys, and by their well-known texts.

    Returns the vocabulary with the kinds corrected (a token that looks like a control token is one), and the endings.
    """
    ids, n_vocab, kinds = vocabulary.ids, len(vocabulary.texts), vocabulary.kinds.copy()
    bos = token_id(metadata, "bos_token_id", n_vocab, default_bos)
    eos = token_id(metadata, "eos_token_id", n_vocab, default_eos)
    roles: dict[str, int | None] = {}
    for role, texts in {"eot": _END_OF_TURN, "eom": _END_OF_MESSAGE, **_FILL_IN}.items():
        roles[role] = token_id(metadata, f"{role}_token_id", n_vocab)
        if role in _OLD_KEYS:
            roles[role] = token_id(metadata, _OLD_KEYS[role], n_vocab, roles[role])
        if roles[role] is None:
            roles[role] = next((ids[text] for text in texts if text in ids), None)
            if roles[role] is not None:
                kinds[roles[role]] |= Kind.CONTROL
    ends = {ids[text] for text in _END_OF_GENERATION if text in ids}
    for token in ends:
        kinds[token] |= Kind.CONTROL
    for token in (ids[text] for text in _ALWAYS_SHOWN if text in ids):
        kinds[token] = Kind.USER_DEFINED
    named = (eos, roles["eot"], roles["eom"], roles["fim_pad"], roles["fim_rep"], roles["fim_sep"])
    ends |= {token for token in named if token is not None}
    _correct_ends(ends, kinds, ids)
    return replace(vocabulary, kinds=kinds), Endings(bos, eos, frozenset(ends))


def _correct_ends(ends: set[int], kinds: NDArray[np.uint8], ids: Mapping[str, int]) -> None:
    """Take back two guesses that are wrong for models which use the same texts otherwise (gpt-oss and Solar; Gemma 4)."""
    texts = {text for text in _END_OF_GENERATION if ids.get(text) in ends}
    calls = bool(texts & {"<|call|>", "<|calls|>"})
    if "<|end|>" in texts and calls and texts & {"<|return|>", "<|flush|>"}:
        ends.discard(ids["<|end|>"])
        kinds[ids["<|end|>"]] = Kind.USER_DEFINED
    if {"<|tool_response>", "</s>"} <= texts:
        ends.discard(ids["</s>"])
        kinds[ids["</s>"]] = Kind.NORMAL
