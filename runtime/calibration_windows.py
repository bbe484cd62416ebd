"""A calibration text as windows of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelm.errors import InvalidRequestError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgelm.backends.config import ModelConfig

CALIBRATION_TOKENS = 16384
WINDOW = 512
_LEAST_TOKENS = 256
_MOST_BYTES = 100_000_000  # all of them are made tokens, at about a megabyte a second
_BATCH_BYTES = 64 << 20  # of the widest state of a batch of windows


def calibration_windows(metadata: Mapping[str, Any], path: Path, n_tokens: int, notes: list[str]) -> NDArray[np.int32]:
    """Tokens [n_windows, n] from all over the text; each window begins with the beginning token where the tokenizer adds one.

    Args:
        metadata: of the model.
        path: of the text.
        n_tokens: how many are wanted.
        notes: gets a line where the text has fewer.

    Raises:
        InvalidRequestError: the text cannot be read, or is too short to be of use.
    """
    import numpy as np

    from edgelm.runtime.tokenizer import Tokenizer

    try:
        n_bytes = path.stat().st_size
        if n_bytes > _MOST_BYTES:
            raise InvalidRequestError(
                f"{path}: the calibration text has {n_bytes / 1e6:,.0f} MB, of which few would be used; give {_MOST_BYTES / 1e6:,.0f} MB "
                "at the most; some hundred kilobytes are enough"
            )
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"{path}: the calibration text cannot be read ({error}); give a text file in UTF-8") from None
    tokenizer = Tokenizer.from_metadata(metadata)
    tokens = tokenizer.encode(text, parse_special=False)
    if len(tokens) < _LEAST_TOKENS:
        raise InvalidRequestError(
            f"{path}: the calibration text has {len(tokens)} tokens; give {_LEAST_TOKENS} at least, better {CALIBRATION_TOKENS:,}, of "
            "what the model will read and write"
        )
    before = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    longest = min(WINDOW, int(metadata.get(f"{metadata['general.architecture']}.context_length", WINDOW)))
    step = min(longest, len(tokens) + len(before)) - len(before)
    n_there = len(tokens) // step
    n_windows = min(max(1, n_tokens // longest), n_there)
    places = np.linspace(0, n_there - 1, n_windows).round().astype(int)
    windows = np.array([before + tokens[place * step : (place + 1) * step] for place in places], np.int32)
    if n_there == n_windows and windows.size + longest < n_tokens:
        notes.append(f"calibrated on all {windows.size:,} tokens that fill whole windows of the text; {n_tokens:,} were asked for")
    return windows


def batch_size(config: ModelConfig, windows: NDArray[np.int32]) -> int:
    """Windows that are computed together, so that their widest state stays within bounds, in batches of nearly one size."""
    widest = max(config.n_ff, config.n_embd, config.n_heads * config.head_dim)
    most = max(1, _BATCH_BYTES // (4 * widest * int(windows.shape[1])))
    n_batches = -(-len(windows) // most)
    return -(-len(windows) // n_batches)
