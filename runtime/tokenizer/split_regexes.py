r"""Pre-tokenizers as a Hugging Face tokenizer.json describes them: regexes that split text, one after the other.

The regexes are spelt as the models' own files spell them, since onnxruntime-extensions knows them by their spelling. Where llama.cpp
cannot tell the case of letters beyond ASCII, they can, as the models' own files do.
"""

from __future__ import annotations

import re
from typing import Any

from edgelm.errors import UnsupportedModelError
from edgelm.runtime.pretokenizers import LOWER, SHORT_FORMS, UPPER, Match, MatchAndCut, PreTokenizer, Step
from edgelm.runtime.unicode_classes import CLASS_BYTES

_CASED = (
    (UPPER, r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}"),
    (LOWER, r"\p{Ll}\p{Lm}\p{Lo}\p{M}"),
)
_MARK = chr(CLASS_BYTES["M"])
_ENGLISH = (
    (f"(?:{SHORT_FORMS})?", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"),
    (SHORT_FORMS, "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"),
)
# Characters that stand for classes of llama.cpp's own; \xd6 and \xd7 are its two classes of Han characters.
_PRIVATE_CLASS = re.compile("[\xd0-\xd7]")
_CODE_POINT = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8}))")


def pre_tokenizer_json(pre_tokenizer: PreTokenizer) -> dict[str, Any]:
    """The "pre_tokenizer" of a tokenizer.json for a byte-level vocabulary.

    Raises:
        UnsupportedModelError: no regex says what this pre-tokenizer does.
    """
    splits = [
        {"type": "Split", "pattern": {"Regex": _regex(step, pre_tokenizer)}, "behavior": "Isolated", "invert": False}
        for step in pre_tokenizer.steps
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [*splits, byte_level]}


def _regex(step: Step, pre_tokenizer: PreTokenizer) -> str:
    """The step's pattern as Oniguruma reads it."""
    pattern = step.boundary if isinstance(step, MatchAndCut) else step.pattern if isinstance(step, Match) else ""
    for ours, theirs in (*_CASED, *_ENGLISH):
        pattern = pattern.replace(ours + _MARK, theirs).replace(ours, theirs)
    if not pattern or _PRIVATE_CLASS.search(pattern):
        raise UnsupportedModelError(
            f"a tokenizer.json cannot hold the pre-tokenizer {pre_tokenizer.names[0]!r}, whose classes of Han characters no regex has; "
            "edgelm runs the model without one"
        )
    return _CODE_POINT.sub(lambda match: chr(int(match[1] or match[2] or match[3], 16)), pattern).replace(r"\Z", r"\z")
