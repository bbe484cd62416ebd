"""Scalings of channels kept in the work folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tiny_models import write_tiny

from edgelm.quant.channel_folds import HeadSizes, folds_of
from edgelm.quant.channel_scaling import ChannelScaling
from edgelm.quant.fingerprint import make_fingerprint
from edgelm.quant.gguf_file import GGUFFile
from edgelm.quant.scaling_record import save_scalings, stored_scalings
from edgelm.quant.work_folder import open_or_create

HEADS = HeadSizes(4, 2, 16)


def test_scalings_come_back_in_a_later_run(tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "m.gguf", "llama", n_kv_heads=2)
    fingerprint = make_fingerprint(source, {}, {})
    with GGUFFile(source) as file:
        folds = [fold for layer in range(2) for fold in folds_of(file.tensors, layer, HEADS)]
        rng = np.random.default_rng(1)
        scalings = [
            ChannelScaling(fold, 0.3 * (i % 3), 0.1, np.exp(rng.standard_normal(fold.n_channels)).astype(np.float32))
            for i, fold in enumerate(folds)
        ]
        with open_or_create(tmp_path / "out.gguf", fingerprint) as work:
            assert stored_scalings(work, file, HEADS) is None
            save_scalings(work, scalings)
        with open_or_create(tmp_path / "out.gguf", fingerprint) as work:
            stored = stored_scalings(work, file, HEADS)
    assert stored is not None
    scaled = [scaling for scaling in scalings if scaling.alpha]
    assert len(stored) == len(scaled) > 3
    for one, other in zip(stored, scaled, strict=True):
        assert (one.fold.name, one.fold.consumers, one.alpha, one.gain) == (other.fold.name, other.fold.consumers, other.alpha, other.gain)
        np.testing.assert_array_equal(one.factors, other.factors)


def test_that_nothing_is_scaled_is_kept_too(tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "m.gguf", "llama", n_kv_heads=2)
    with GGUFFile(source) as file, open_or_create(tmp_path / "out.gguf", make_fingerprint(source, {}, {})) as work:
        save_scalings(work, [])
        assert stored_scalings(work, file, HEADS) == ()
