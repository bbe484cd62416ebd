"""Scalings of channels kept in the work folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_models import write_tiny

from edgelm.quant.channel_folds import HeadSizes, model_folds
from edgelm.quant.channel_scaling import ChannelScaling
from edgelm.quant.fingerprint import make_fingerprint
from edgelm.quant.gguf_file import GGUFFile
from edgelm.quant.input_statistics import InputStatistics
from edgelm.quant.scaling_record import save_output_inputs, save_scaling, stored_output_inputs, stored_scaling
from edgelm.quant.work_folder import open_or_create


def test_scalings_come_back_in_a_later_run(tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "m.gguf", "llama", n_kv_heads=2)
    fingerprint = make_fingerprint(source, {}, {})
    with GGUFFile(source) as file:
        *folds, last = model_folds(file.tensors, 2, HeadSizes(4, 2, 16), kept=())
        rng = np.random.default_rng(1)
        scalings = [
            ChannelScaling(fold, 0.3 * (i % 3), 0.1 * (i % 3), np.exp(rng.standard_normal(fold.n_channels) * (i % 3)).astype(np.float32))
            for i, fold in enumerate(folds)
        ]
        assert {scaling.alpha > 0 for scaling in scalings} == {False, True}
        with open_or_create(tmp_path / "out.gguf", fingerprint) as work:
            for scaling in scalings:
                save_scaling(work, scaling)
        with open_or_create(tmp_path / "out.gguf", fingerprint) as work:
            stored = [stored_scaling(work, fold) for fold in folds]
            assert stored_scaling(work, last) is None
    for one, other in zip(stored, scalings, strict=True):
        assert one is not None
        assert (one.fold, one.alpha, one.gain) == (other.fold, other.alpha, other.gain)
        np.testing.assert_array_equal(one.factors, other.factors)


@pytest.mark.parametrize("outer", [False, True])
def test_inputs_of_the_output_layer_come_back(tmp_path: Path, outer: bool) -> None:
    x = np.random.default_rng(1).standard_normal((9, 64)).astype(np.float32)
    products = x.T @ x
    statistics = InputStatistics(9, products.diagonal().copy(), products if outer else None)
    fingerprint = make_fingerprint(write_tiny(tmp_path / "m.gguf", "llama"), {}, {})
    with open_or_create(tmp_path / "out.gguf", fingerprint) as work:
        assert stored_output_inputs(work) is None
        save_output_inputs(work, statistics)
    with open_or_create(tmp_path / "out.gguf", fingerprint) as work:
        stored = stored_output_inputs(work)
        assert stored is not None
        assert stored.n_tokens == 9
        np.testing.assert_array_equal(stored.squares, statistics.squares)
        if outer:
            np.testing.assert_array_equal(stored.outer, products)
        else:
            assert stored.outer is None
