"""Opening engines by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgelm.backends.registry import ENGINES, open_backend, unavailable_reason
from edgelm.errors import BackendUnavailableError, InvalidRequestError


def test_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailableError, match=r"'gpu'; edgelm has cpu, llamacpp, onnx"):
        open_backend("gpu", tmp_path)


def test_unknown_precision(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="int8, f32"):
        open_backend("cpu", tmp_path, precision="int3")


@pytest.mark.parametrize("wrong", [{"n_threads": 0}, {"n_ctx": -5}, {"n_threads": 100_000}])
def test_counts_must_make_sense(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(InvalidRequestError, match=r"at (least 1|most 1024)\b"):
        open_backend("cpu", tmp_path, **wrong)  # type: ignore[arg-type]


def test_every_engine_is_either_available_or_has_a_reason() -> None:
    for name in ENGINES:
        reason = unavailable_reason(name)
        assert reason is None or "not installed" in reason
