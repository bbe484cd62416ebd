"""Sessions: settings that reach ONNX Runtime, who got which nodes, and errors that say what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgelm.backends.onnx.providers import unavailable_reason
from edgelm.backends.onnx.session import SessionSettings, open_session, session_options
from edgelm.errors import BackendUnavailableError, EdgeLMError, InvalidRequestError, ModelFileError, UnsupportedModelError

WEIGHT = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)


def write_graph(path: Path, *extra: str) -> Path:
    """y = x W, then one node for each of `extra` on y; x float32 [1, 8]."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y0"])]
    nodes += [helper.make_node(kind, [f"y{n}"], [f"y{n + 1}"]) for n, kind in enumerate(extra)]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])]
    outputs = [helper.make_tensor_value_info(f"y{len(extra)}", TensorProto.FLOAT, [1, 8])]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, [numpy_helper.from_array(WEIGHT, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return write_graph(tmp_path / "graph.onnx", "Relu", "Neg")


@pytest.fixture
def needs_qnn() -> None:
    reason = unavailable_reason("qnn")
    if reason is not None:
        pytest.skip(f"the provider qnn: {reason}")


def test_nodes_of_the_cpu(graph: Path) -> None:
    session = open_session(graph, SessionSettings())
    assert session.providers == {"cpu": 3}
    assert session.operators["cpu"] == {"MatMul": 1, "Relu": 1, "Neg": 1}
    x = np.arange(8, dtype=np.float32)[None]
    np.testing.assert_allclose(session.ort.run(None, {"x": x})[0], -np.maximum(x @ WEIGHT, 0), rtol=1e-6)


@pytest.mark.parametrize("spinning", [True, False])
def test_settings_reach_onnxruntime(spinning: bool) -> None:
    options = session_options(SessionSettings(n_threads=3, spinning=spinning, config={"session.set_denormal_as_zero": "1"}))
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == str(int(spinning))
    assert options.get_session_config_entry("session.set_denormal_as_zero") == "1"
    assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "0"


FALLS = [(("cpu",), False, "0"), (("cpu",), True, "0"), (("qnn", "cpu"), False, "0"), (("qnn", "cpu"), True, "1"), (("qnn",), False, "1")]


@pytest.mark.parametrize(("providers", "strict", "entry"), FALLS)
@pytest.mark.usefixtures("needs_qnn")
def test_the_cpu_takes_nodes_only_where_it_was_named(providers: tuple[str, ...], strict: bool, entry: str) -> None:
    options = session_options(SessionSettings(providers=providers, strict=strict))
    assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == entry


def test_profile(graph: Path, tmp_path: Path) -> None:
    session = open_session(graph, SessionSettings(profile=str(tmp_path / "profile")))
    session.ort.run(None, {"x": np.zeros((1, 8), np.float32)})
    path = session.close()
    assert path is not None
    assert path.parent == tmp_path
    assert any(event.get("args", {}).get("op_name") == "MatMul" for event in json.loads(path.read_text()))
    assert session.close() is None


def missing(path: Path) -> None:
    path.unlink()


def garbage(path: Path) -> None:
    path.write_bytes(b"garbage" * 99)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def change(edit: Callable[[onnx.ModelProto], object]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        model = onnx.load(path)
        edit(model)
        onnx.save(model, path)

    return write


def outside_data(present: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        data = path.with_suffix(".data")
        onnx.save(onnx.load(path), path, save_as_external_data=True, location=data.name, size_threshold=0)
        data.write_bytes(data.read_bytes()[:present])
        if not present:
            data.unlink()

    return write


DAMAGES = {
    "missing": (missing, "a file is missing"),
    "garbage": (garbage, "cannot open it .*; copy the whole folder, or export the model again"),
    "cut": (cut, "cannot open it"),
    "no data": (outside_data(0), "a file is missing .*graph.data"),
    "data cut": (outside_data(16), "out of bounds"),
    "newer operators": (
        change(lambda model: setattr(model.opset_import[0], "version", 99)),
        "made for another ONNX Runtime .*update onnxruntime",
    ),
    "newer format": (change(lambda model: setattr(model, "ir_version", 99)), "made for another ONNX Runtime"),
    "unknown operator": (change(lambda model: setattr(model.graph.node[1], "op_type", "Flip")), "made for another ONNX Runtime .*Flip"),
    "no graph": (change(lambda model: model.graph.Clear()), "cannot open it"),
}


@pytest.mark.parametrize(("damage", "text"), DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_graphs(graph: Path, damage: Callable[[Path], None], text: str, capfd: pytest.CaptureFixture[str]) -> None:
    damage(graph)
    with pytest.raises(ModelFileError, match=text):
        open_session(graph, SessionSettings())
    assert capfd.readouterr().err == ""


def test_a_run_that_fails_says_where(graph: Path) -> None:
    session = open_session(graph, SessionSettings())
    binding = session.ort.io_binding()
    x, y = np.zeros((1, 8), np.float32), np.zeros((2, 8), np.float32)
    binding.bind_input("x", "cpu", 0, np.float32, x.shape, x.ctypes.data)
    binding.bind_output("y2", "cpu", 0, np.float32, y.shape, y.ctypes.data)
    with pytest.raises(BackendUnavailableError, match=r"graph.onnx failed while it was computed"):
        session.run(binding)


def test_a_provider_that_is_not_there(graph: Path) -> None:
    with pytest.raises(BackendUnavailableError, match="'nnapi' cannot be used"):
        open_session(graph, SessionSettings(providers=("nnapi", "cpu")))


def test_options_are_checked_here_too(graph: Path) -> None:
    with pytest.raises(InvalidRequestError, match="has no option"):
        open_session(graph, SessionSettings(provider_options={"cpu": {"speed": "11"}}))


def test_nnapi_flags_that_python_cannot_pass_are_not_dropped() -> None:
    settings = SessionSettings(providers=("nnapi",), provider_options={"nnapi": {"use_fp16": "1", "cpu_disabled": "1", "use_nchw": "0"}})
    with pytest.raises(BackendUnavailableError, match=r"takes use_fp16, cpu_disabled as a number \(5\)"):
        session_options(settings)


@pytest.mark.usefixtures("needs_qnn")
class TestQNN:
    """Against the emulator of Qualcomm's NPU."""

    def test_a_graph_that_it_takes_as_a_whole(self, graph: Path, capfd: pytest.CaptureFixture[str]) -> None:
        session = open_session(graph, SessionSettings(providers=("qnn", "cpu"), strict=True))
        assert session.providers == {"qnn": 3}
        x = np.arange(8, dtype=np.float32)[None]
        np.testing.assert_allclose(session.ort.run(None, {"x": x})[0], -np.maximum(x @ WEIGHT, 0), rtol=0.02, atol=0.02)
        assert capfd.readouterr().out == ""

    def test_a_fall_is_told_or_refused(self, tmp_path: Path) -> None:
        path = write_graph(tmp_path / "graph.onnx", "Relu", "Shrink")
        assert open_session(path, SessionSettings(providers=("qnn", "cpu"))).providers == {"qnn": 2, "cpu": 1}
        for settings in (SessionSettings(providers=("qnn",)), SessionSettings(providers=("qnn", "cpu"), strict=True)):
            with pytest.raises(UnsupportedModelError, match=r"of 3 nodes, 1 on cpu \(1 Shrink\) instead of qnn"):
                open_session(path, settings)

    def test_a_graph_of_which_it_takes_nothing(self, tmp_path: Path) -> None:
        settings = SessionSettings(providers=("qnn", "cpu"), provider_options={"qnn": {"soc_model": "9999"}})
        with pytest.raises(BackendUnavailableError, match=r"on cpu .*Invalid config values; it takes no node of this graph"):
            open_session(write_graph(tmp_path / "graph.onnx"), settings)

    def test_a_backend_library_that_is_not_there(self, graph: Path) -> None:
        settings = SessionSettings(providers=("qnn",), provider_options={"qnn": {"backend_path": "/nowhere/libQnnHtp.so"}})
        with pytest.raises(BackendUnavailableError, match=r"Unable to load backend, error: /nowhere/libQnnHtp.so"):
            open_session(graph, settings)

    def test_damaged_graphs(self, graph: Path) -> None:
        garbage(graph)
        with pytest.raises(EdgeLMError, match="cannot"):
            open_session(graph, SessionSettings(providers=("qnn",)))

    def test_compiled_contexts(self, graph: Path, tmp_path: Path) -> None:
        compiled = tmp_path / "compiled.onnx"
        config = {"ep.context_enable": "1", "ep.context_file_path": str(compiled), "ep.context_embed_mode": "0"}
        chip = {"qnn": {"soc_model": "SM8650", "htp_arch": "75"}}
        open_session(graph, SessionSettings(providers=("qnn",), provider_options=chip, config=config)).close()
        assert open_session(compiled, SessionSettings(providers=("qnn",))).operators["qnn"] == {"EPContext": 1}
        with pytest.raises(BackendUnavailableError, match="compiled for a provider that is not at work here, only cpu"):
            open_session(compiled, SessionSettings())
        no_library = {"qnn": {"backend_path": "/nowhere/libQnnHtp.so"}}
        with pytest.raises(BackendUnavailableError, match=r"Unable to load backend, error: /nowhere/libQnnHtp.so"):
            open_session(compiled, SessionSettings(providers=("qnn",), provider_options=no_library))
        binary = next(tmp_path.glob("*.bin"))
        whole = binary.read_bytes()
        for damaged in (b"garbage" * 99, whole[: len(whole) // 2], b""):
            binary.write_bytes(damaged)
            with pytest.raises(ModelFileError, match=r"the compiled context cannot be loaded .*export the model again"):
                open_session(compiled, SessionSettings(providers=("qnn",)))
        binary.unlink()
        with pytest.raises(ModelFileError, match="export the model again"):
            open_session(compiled, SessionSettings(providers=("qnn",)))
