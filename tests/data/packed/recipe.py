"""Makes the folders beside this file: one random model, its layers packed by the libraries that others pack theirs with.

Run in an environment with torch, transformers, accelerate and the three libraries (autoawq and auto-gptq with --no-deps):

    python recipe.py compressed-tensors | awq | gptq
"""

import importlib
import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent
GROUP = 32
TOKENS = torch.arange(5, 45)[None] % 40


def model():
    """Of one block, with weights of float16."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(**sizes, vocab_size=40, max_position_embeddings=512, bos_token_id=1, eos_token_id=2, initializer_range=0.15)
    found = LlamaForCausalLM(config).float()
    for parameter in found.parameters():
        parameter.data = parameter.data.half().float()
    return found


def layers(whole):
    return [(name, layer) for name, layer in whole.named_modules() if isinstance(layer, torch.nn.Linear) and "proj" in name]


def rounded(weights, order, bits, symmetric):
    """Weights on a grid, with scales of float16 and zero points [n_out, n_groups]; groups are GROUP columns in that order."""
    top = 2**bits - 1
    grouped = weights[:, order].reshape(len(weights), -1, GROUP)
    low, high = grouped.amin(-1), grouped.amax(-1)
    if symmetric:
        scales = (2 * torch.maximum(high, -low) / top).half().float()
        zeros = torch.full_like(scales, (top + 1) // 2)
    else:
        scales = ((high - low) / top).half().float()
        zeros = (-torch.round(low / scales)).clamp(1, top)
    codes = (torch.round(grouped / scales[..., None]) + zeros[..., None]).clamp(0, top)
    values = torch.empty_like(weights)
    values[:, order] = ((codes - zeros[..., None]) * scales[..., None]).reshape(weights.shape)
    return values, scales, zeros


def linear(values):
    layer = torch.nn.Linear(values.shape[1], values.shape[0], bias=False)
    layer.weight.data = values.clone()
    return layer


def write(folder, whole, tensors, packing):
    """The folder, with the logits that the rounded weights give in float32."""
    folder.mkdir(exist_ok=True)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **whole.config.to_diff_dict(), "quantization_config": packing}
    kept = {name: values.half() for name, values in whole.named_parameters() if "proj" not in name}
    save_file({name: values.contiguous() for name, values in {**kept, **tensors}.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    with torch.no_grad():
        np.save(folder / "logits.npy", whole(TOKENS).logits[0].numpy())


def import_bare(name):
    """A module of a package whose own __init__ would import much more."""
    parts = name.split(".")
    root = Path(importlib.util.find_spec(parts[0]).submodule_search_locations[0])
    for n in range(1, len(parts)):
        package = types.ModuleType(".".join(parts[:n]))
        package.__path__ = [str(root.joinpath(*parts[1:n]))]
        sys.modules[package.__name__] = package
    return importlib.import_module(name)


def awq():
    gemm = import_bare("awq.modules.linear.gemm").WQLinear_GEMM
    whole, tensors = model(), {}
    for name, layer in layers(whole):
        n_in = layer.in_features
        layer.weight.data, scales, zeros = rounded(layer.weight.data, torch.arange(n_in), 4, symmetric=False)
        packed = gemm.from_linear(linear(layer.weight.data), 4, GROUP, False, scales.T.contiguous(), zeros.T.contiguous())
        tensors |= {f"{name}.{part}": getattr(packed, part) for part in ("qweight", "qzeros", "scales")}
    write(HERE / "awq", whole, tensors, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"})


def gptq():
    kind = import_bare("auto_gptq.nn_modules.qlinear.qlinear_cuda").QuantLinear
    for bits, symmetric, act_order in ((4, True, False), (4, False, False), (4, False, True), (8, True, False)):
        whole, tensors, rng = model(), {}, np.random.default_rng(0)
        for name, layer in layers(whole):
            n_in, n_out = layer.in_features, layer.out_features
            order = torch.tensor(rng.permutation(n_in)) if act_order else torch.arange(n_in)
            groups = torch.empty(n_in, dtype=torch.int32)
            groups[order] = (torch.arange(n_in) // GROUP).int()
            layer.weight.data, scales, zeros = rounded(layer.weight.data, order, bits, symmetric)
            packed = kind(bits, GROUP, n_in, n_out, False)
            packed.pack(linear(layer.weight.data), scales, zeros, groups)
            tensors |= {f"{name}.{part}": getattr(packed, part) for part in ("qweight", "qzeros", "scales", "g_idx")}
        tensors = {name: values.half() if name.endswith("scales") else values for name, values in tensors.items()}
        what = f"gptq-{bits}{'' if symmetric else '-asymmetric'}{'-act-order' if act_order else ''}"
        packing = {"bits": bits, "group_size": GROUP, "sym": symmetric, "desc_act": act_order, "checkpoint_format": "gptq"}
        write(HERE / what, whole, tensors, {"quant_method": "gptq", **packing})


def compressed_tensors():
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        QuantizationStatus,
        apply_quantization_config,
    )

    for bits, symmetric in ((4, True), (4, False), (8, True)):
        whole = model()
        weights = QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy="group", group_size=GROUP)
        scheme = QuantizationScheme(targets=["Linear"], weights=weights)
        config = QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"], format="pack-quantized")
        apply_quantization_config(whole, config)
        middle = 1 << (bits - 1)
        for _, layer in layers(whole):
            values, scales, zeros = rounded(layer.weight.data, torch.arange(layer.in_features), bits, symmetric)
            layer.weight.data, layer.weight_scale.data = values, scales.to(layer.weight_scale.dtype)
            if not symmetric:
                layer.weight_zero_point.data = (zeros - middle).to(layer.weight_zero_point.dtype)
            layer.quantization_status = QuantizationStatus.FROZEN
        with torch.no_grad():
            logits = whole(TOKENS).logits[0].numpy()  # by the library's own rounding
        compressor = ModelCompressor.from_pretrained_model(whole)
        compressor.compress_model(whole)
        folder = HERE / f"compressed-tensors-{bits}{'' if symmetric else '-asymmetric'}"
        whole.save_pretrained(folder)
        compressor.update_config(folder)
        (folder / "generation_config.json").unlink()
        np.save(folder / "logits.npy", logits)


if __name__ == "__main__":
    {"awq": awq, "gptq": gptq, "compressed-tensors": compressed_tensors}[sys.argv[1]]()
