"""Rotating halves of reordered channels is the rotation that the model asks for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_models import write_variant

from edgelm.backends.config import read_config
from edgelm.backends.onnx.rotary_halves import halves_tables, paired_channels
from edgelm.backends.reference import rotate
from edgelm.backends.rope import rope_tables
from edgelm.quant.open_model import open_model


@pytest.mark.parametrize("variant", ["llama", "llama-rope-yarn", "phi3", "phi3-partial-rope", "qwen2"])
def test_rotating_halves_of_reordered_channels_is_the_models_own_rotation(variant: str, tmp_path: Path) -> None:
    config = read_config(open_model(write_variant(tmp_path / "m.gguf", variant)).metadata)
    d, n = config.head_dim, 7
    x = np.random.default_rng(0).standard_normal((n, 2, d)).astype(np.float32)
    order = paired_channels(config.rope, d, config.row.rope)
    assert sorted(order) == list(range(d))
    cos, sin = halves_tables(config.rope, d, n, None)
    reordered = x[..., order]
    swapped = np.concatenate([reordered[..., d // 2 :], reordered[..., : d // 2]], axis=-1)
    rotated = reordered * cos[:, None] + swapped * sin[:, None]
    np.testing.assert_allclose(rotated, rotate(x, rope_tables(config.rope, n), config.row.rope)[..., order], rtol=0, atol=1e-6)
