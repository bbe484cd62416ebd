"""What a folder says of its quantized weights: `quantization_config` in config.json, or the files that AutoGPTQ and AutoAWQ once wrote.

A layout that is not understood is refused by its name, never guessed.
"""

from __future__ import annotations

from pathlib import Path

from edgelm.errors import UnsupportedModelError
from edgelm.quant.json_file import JsonObject
from edgelm.quant.packed_layouts import AWQ, GPTQ, WHOLE_ROW, CompressedTensors, Layout, Scheme

_BITS = (4, 8)
_LEGACY_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
_AWQ_KEYS = {"w_bit": "bits", "q_group_size": "group_size"}
_PACKED = "pack-quantized"
_GPTQ_ZEROS_LESS_1 = {"gptq": True, "gptq_v2": False}


def read_layout(config: JsonObject, folder: Path) -> Layout | None:
    """The layout of the packed layers; None where nothing is quantized.

    Args:
        config: config.json.
        folder: where an older file may say it instead.

    Raises:
        ModelFileError: a key is missing or its value makes no sense.
        UnsupportedModelError: a method or layout that edgelm does not read.
    """
    found = _description(config, folder)
    if found is None:
        return None
    method = found.text("quant_method")
    match method:
        case "awq":
            return _awq(found)
        case "gptq":
            return _gptq(found)
        case "compressed-tensors":
            return _compressed_tensors(found)
    raise _unsupported(found, f"weights quantized by {method!r:.60}", "awq, gptq and compressed-tensors")


def _description(config: JsonObject, folder: Path) -> JsonObject | None:
    if config.has("quantization_config"):
        return config.object("quantization_config")
    for name, method in _LEGACY_FILES.items():
        if (folder / name).exists():
            found = JsonObject.read(folder / name)
            values = {_AWQ_KEYS.get(key, key): value for key, value in found.values.items()}
            return JsonObject({"quant_method": method} | values, found.where)
    return None


def _unsupported(source: JsonObject, what: str, known: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{source.where}: {what} cannot be read, only {known}; choose another quantization of the model, or the unquantized one"
    )


def _bits(source: JsonObject, key: str, known: tuple[int, ...] = _BITS) -> int:
    bits = source.integer(key)
    if bits not in known:
        raise _unsupported(source, f"codes of {bits} bits", " and ".join(map(str, known)))
    return bits


def _group_size(source: JsonObject, default: int | None = None) -> int:
    size = source.values["group_size"] if source.has("group_size") else default
    if type(size) is not int or not (size == WHOLE_ROW or 0 < size < 2**31):
        raise source.fail("group_size", "a number of columns, or -1")
    return size


def _flag(source: JsonObject, key: str) -> bool:
    """true, false, or 1 or 0 as some files have it; false where it is missing."""
    value = source.values.get(key)
    if value not in (None, True, False):
        raise source.fail(key, "true or false")
    return bool(value)


def _awq(source: JsonObject) -> AWQ:
    version = source.text("version", source.text("checkpoint_format", "gemm"))
    if version.lower() != "gemm" or source.text("backend", "autoawq") == "llm-awq":
        raise _unsupported(source, f"the AWQ layout {source.text('backend', version)!r:.60}", "gemm")
    _bits(source, "bits", (4,))
    return AWQ(_group_size(source))


def _gptq(source: JsonObject) -> GPTQ:
    kind = "marlin" if _flag(source, "is_marlin_format") else source.text("checkpoint_format", "gptq")
    if kind not in _GPTQ_ZEROS_LESS_1:
        raise _unsupported(source, f"the GPTQ layout {kind!r:.60}", " and ".join(_GPTQ_ZEROS_LESS_1))
    if (words := source.text("pack_dtype", "int32")) != "int32":
        raise _unsupported(source, f"GPTQ codes in words of the type {words!r:.60}", "int32")
    # A rule that begins with "-" leaves layers unquantized, which their tensors show.
    if rules := [rule for rule in source.object("dynamic").values if not rule.startswith("-")]:
        raise _unsupported(source, f"the GPTQ rule {rules[0]!r:.60} for some of the layers", "one setting for all")
    return GPTQ(_bits(source, "bits"), _group_size(source), _flag(source, "desc_act"), _GPTQ_ZEROS_LESS_1[kind])


def _compressed_tensors(source: JsonObject) -> CompressedTensors:
    _check_format(source, source.text("format"))
    if source.object("sparsity_config").text("format", "dense") != "dense":
        raise _unsupported(source, "sparse weights", "dense ones")
    if source.object("transform_config").values:
        raise _unsupported(source, "weights that are transformed when the model runs", "plain ones")
    groups = source.object("config_groups")
    schemes = [_scheme(groups.object(name)) for name in groups.values]
    if not schemes:
        raise source.fail("config_groups", "an object with a group in it")
    return CompressedTensors(tuple(schemes))


def _check_format(source: JsonObject, kind: str) -> None:
    if kind != _PACKED:
        raise _unsupported(source, f"the compressed-tensors format {kind!r:.60}", _PACKED)


def _scheme(group: JsonObject) -> Scheme:
    _check_format(group, group.text("format", _PACKED))
    weights = group.object("weights")
    if (kind := weights.text("type", "int")) != "int":
        raise _unsupported(weights, f"codes of the type {kind!r:.60}", "int")
    size = _group_size(weights, WHOLE_ROW)
    strategy = weights.text("strategy", "group" if size > 0 else "channel")
    if strategy not in ("group", "channel") or (strategy == "group") != (size > 0):
        raise _unsupported(weights, f"the strategy {strategy!r:.60} with a group size of {size}", "group and channel")
    act_order = weights.values.get("actorder")
    if act_order not in (None, False, True, "group", "dynamic", "weight", "static"):
        raise weights.fail("actorder", "group or weight")
    return Scheme(_bits(weights, "num_bits"), weights.truth("symmetric", True), size, act_order in (True, "group", "dynamic"))
