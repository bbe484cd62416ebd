"""A model file with scaled channels computes what the file under it does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_models import write_variant

from edgelm.backends.block_steps import BlockSteps
from edgelm.backends.reference import ReferenceModel
from edgelm.quant.blocks import FORMATS
from edgelm.quant.calibrate import calibrate
from edgelm.quant.channel_folds import HeadSizes, model_folds
from edgelm.quant.channel_scaling import scale_model
from edgelm.quant.gguf_file import GGUFFile
from edgelm.quant.matrix import Method
from edgelm.quant.row_threads import RowThreads
from edgelm.quant.scaled_file import ScaledFile
from edgelm.quant.scratch import Scratch

TOKENS = np.random.default_rng(1).integers(3, 280, (2, 48)).astype(np.int32)


@pytest.mark.parametrize("variant", ["llama-biases", "phi3", "gemma3"])
def test_scaled_file_gives_the_same_logits(tmp_path: Path, variant: str) -> None:
    with GGUFFile(write_variant(tmp_path / "m.gguf", variant)) as file, RowThreads(1) as threads, Scratch(tmp_path) as scratch:
        config = ReferenceModel(file).config
        heads = HeadSizes(config.n_heads, config.n_kv_heads, config.head_dim)
        formats = {name: FORMATS["Q4_0"] for name, tensor in file.tensors.items() if name.startswith("blk.") and len(tensor.shape) == 2}
        model = BlockSteps(file, TOKENS.shape[1], threads)
        groups = dict(calibrate(model, TOKENS, 1, True, threads, scratch, lambda *_: None))
        folds = model_folds(file.tensors, config.n_layers, heads, kept=())
        scalings = tuple(scale_model(file.tensors, folds, groups.items(), formats, Method(), threads))
        scaled = ScaledFile(file, scalings)

        assert len(scalings) == 4 * config.n_layers
        assert any(scaling.alpha for scaling in scalings)
        assert list(scaled.tensors) == list(file.tensors)
        assert scaled.tensors["token_embd.weight"] is file.tensors["token_embd.weight"]
        logits, wanted = (ReferenceModel(each).logits(TOKENS[0]) for each in (scaled, file))
        assert np.abs(logits - wanted).max() < 1e-5 * np.abs(wanted).max()

        for scaling in scalings:
            for name in scaling.fold.consumers if scaling.alpha else ():
                by_hand = scaling.fold.apply(file.tensors, scaling.factors)[name].dequantize()
                columns = scaled.tensors[name].dequantize() / by_hand  # constant along rows but for producers of other folds
                assert np.allclose(columns, columns[:, :1], rtol=1e-4)
