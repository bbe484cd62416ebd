"""The least and the greatest value that every activation of a static graph takes while the model reads a text."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgelm.backends.base import Progress
from edgelm.backends.config import ModelConfig
from edgelm.backends.onnx.data_file import DataFile
from edgelm.backends.onnx.export_static import StaticForm, StaticGraph, static_graph
from edgelm.backends.onnx.quantization import Range, Ranges
from edgelm.backends.onnx.static_decoder import MASK_VALUE, visible_keys
from edgelm.backends.weights import ModelTensors
from edgelm.errors import InvalidRequestError


def calibrate_ranges(
    tensors: ModelTensors,
    config: ModelConfig,
    tokens: NDArray[np.int32],
    form: StaticForm,
    folder: Path,
    *,
    window: int = 256,
    chunk: int = 64,
    progress: Progress | None = None,
) -> Ranges:
    """Ranges of every tensor that a node of the float graph gives, by name; the names are those of any graph of the same form.

    The text is read in windows that each start with an empty cache; what does not fill a last chunk is left out. The graph itself
    reduces each tensor to two numbers, so memory holds the weights and one chunk's activations.

    Args:
        tokens: int32 [n], the calibration text.
        form: how the graph is written; the same as that of the graphs to be quantized.
        folder: takes the float weights for as long as it lasts, four bytes each.
        window: tokens that are read one after the other before the cache is emptied.
        chunk: tokens of one run.
        progress: called with a line now and then.

    Raises:
        InvalidRequestError: there are no tokens, or one is not in the vocabulary.
    """
    _check_tokens(tokens, tensors.n_vocab)
    chunk = min(chunk, len(tokens))
    graph = static_graph(tensors, config, chunk, window, form)
    with tempfile.TemporaryDirectory(dir=folder, prefix="float-") as place:
        names, session = _open(graph, Path(place))
        low, high = np.full(len(names), np.inf), np.full(len(names), -np.inf)
        for done, lows, highs in _read(session, config, tokens, window, chunk, graph.model):
            low, high = np.minimum(low, lows), np.maximum(high, highs)
            if progress and (done % window == 0 or done + chunk > len(tokens)):
                progress(f"calibrating the ranges of activations: {done} of {len(tokens)} tokens")
        del session
    return {name: Range(float(least), float(most)) for name, least, most in zip(names, low, high, strict=True)}


def _check_tokens(tokens: NDArray[np.int32], n_vocab: int) -> None:
    if len(tokens) == 0:
        raise InvalidRequestError("the calibration text has no tokens; give a text of some hundred words")
    wrong = tokens[(tokens < 0) | (tokens >= n_vocab)]
    if len(wrong):
        raise InvalidRequestError(f"token {wrong[0]} of the calibration text is not in the vocabulary of {n_vocab} tokens")


def _open(graph: StaticGraph, folder: Path) -> tuple[list[str], Any]:
    """A session of the graph with, as first outputs, all minima and all maxima as two vectors; the tensors' names in their order."""
    import onnxruntime

    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    names = [name for node in model.graph.node for name in node.output]
    extremes = [_add_extremes(model.graph, kind, names) for kind in ("ReduceMin", "ReduceMax")]
    caches = [output for output in model.graph.output if output.name.startswith("new_key_values.")]
    del model.graph.output[:]
    model.graph.output.extend([*extremes, *caches])
    with DataFile(folder / "weights.data") as data:
        for name, weight in graph.weights.items():
            model.graph.initializer.append(data.store(name, TensorProto.FLOAT, weight.shape, weight.read()))
    path = folder / "float.onnx"
    path.write_bytes(model.SerializeToString())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return names, onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _add_extremes(graph: onnx.GraphProto, kind: str, names: list[str]) -> onnx.ValueInfoProto:
    """Nodes that reduce each tensor to one number and join the numbers to one vector, which is returned as an output."""
    shape = f"{kind}.shape"
    graph.initializer.append(helper.make_tensor(shape, TensorProto.INT64, [1], [1]))
    parts = []
    for name in names:
        graph.node.append(helper.make_node(kind, [name], [f"{name}.{kind}.scalar"], keepdims=0))
        graph.node.append(helper.make_node("Reshape", [f"{name}.{kind}.scalar", shape], [f"{name}.{kind}"]))
        parts.append(f"{name}.{kind}")
    graph.node.append(helper.make_node("Concat", parts, [kind], axis=0))
    return helper.make_tensor_value_info(kind, TensorProto.FLOAT, [len(names)])


def _read(
    session: Any, config: ModelConfig, tokens: NDArray[np.int32], window: int, chunk: int, model: onnx.ModelProto
) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.float32]]]:
    """Run every whole chunk of the text: tokens read so far, minima and maxima of every tensor."""
    shapes = {info.name: [dim.dim_value for dim in info.type.tensor_type.shape.dim] for info in model.graph.input}
    cache = {name: np.zeros(shape, np.float32) for name, shape in shapes.items() if name.startswith("past_key_values.")}
    outputs = [output.name for output in session.get_outputs()]
    n_past = 0
    for start in range(0, len(tokens) - chunk + 1, chunk):
        if n_past + chunk > window:
            n_past = 0
        inputs: dict[str, NDArray[Any]] = {**cache, "input_ids": tokens[start : start + chunk].astype(np.int32)}
        if "positions" in shapes:
            inputs["positions"] = np.arange(n_past, n_past + chunk, dtype=np.int32)
        for name in shapes:
            if name.endswith("attention_mask"):
                reach = config.sliding_window if name.startswith("local") else window + chunk
                inputs[name] = np.where(visible_keys(n_past, chunk, window, reach), np.float32(0.0), MASK_VALUE)[None, None]
        low, high, *new = session.run(None, inputs)
        for name, values in zip(outputs[2:], new, strict=True):
            past = cache[name.replace("new_", "past_")]
            place = slice(n_past, n_past + chunk)
            past[(..., place) if name.endswith(".key") else (..., place, slice(None))] = values
        n_past += chunk
        yield start + chunk, low, high
