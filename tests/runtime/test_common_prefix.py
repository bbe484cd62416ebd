"""What two runs of tokens begin with."""

from __future__ import annotations

import numpy as np
import pytest

from edgelm.runtime.common_prefix import common_prefix


@pytest.mark.parametrize(
    ("a", "b", "n"), [([], [1], 0), ([1, 2], [1, 2], 2), ([1, 2, 3], [1, 2], 2), ([1, 2, 3], [1, 9, 3], 1), ([4], [5], 0)]
)
def test_what_both_begin_with(a: list[int], b: list[int], n: int) -> None:
    assert common_prefix(np.array(a, np.int32), np.array(b, np.int32)) == n
