"""Exported folders: what is in them, that they answer as the model does, and what is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_folders import write_folder
from tiny_models import write_tiny

from edgelm.errors import InvalidRequestError, ModelFileError
from edgelm.quant.gguf_file import GGUFFile
from edgelm.quant.open_model import open_model
from edgelm.runtime.export import MAX_CALIBRATION_TOKENS, calibration_tokens, export
from edgelm.runtime.llm import LLM
from edgelm.runtime.tokenizer import Tokenizer

pytest.importorskip("onnx", reason="the package onnx is not installed")

QUESTION = [{"role": "user", "content": "Name the capital of France."}]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", "llama", format="Q4_0", embedding_format="Q8_0", n_ctx=128)


@pytest.fixture(scope="module")
def smollm2_folder(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert smollm2_path.is_file()
    return export("smollm2-135m", tmp_path_factory.mktemp("export") / "smollm2").folder


def edgelm(*arguments: str | Path, code: int = 0) -> tuple[str, str]:
    command = (sys.executable, "-c", "from edgelm.runtime.cli import main; main()", *map(str, arguments))
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in done.stderr
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def test_the_folder_answers_as_the_model_does(smollm2_folder: Path, smollm2_path: Path) -> None:
    with LLM(smollm2_folder, backend="onnx") as llm:
        assert llm.chat(QUESTION, temperature=0, max_tokens=10).text == "The capital of France is Paris."
        tokens = llm.tokenizer.encode("don't  <|im_end|>")
    assert tokens == Tokenizer.from_gguf(smollm2_path).encode("don't  <|im_end|>")


def test_the_python_in_the_page_runs(smollm2_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    assert smollm2_path.is_file()
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    first, genai = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    # A process of its own: onnxruntime-genai brings an ONNX Runtime that says goodbye loudly.
    for code in (first, genai):
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        assert "The capital of France is Paris." in done.stdout, done.stderr


def test_genai_ends_an_answer_where_we_do(smollm2_folder: Path) -> None:
    config = json.loads((smollm2_folder / "genai_config.json").read_text())
    ends = Tokenizer.from_metadata(open_model(smollm2_folder).metadata).eog_ids
    assert config["model"]["eos_token_id"] == sorted(ends) == [0, 2, 4]


def test_a_huggingface_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "source", "Qwen3ForCausalLM")
    report = export(tmp_path / "source", tmp_path / "out", n_ctx=64)
    assert {"tokenizer.json", "tokenizer_config.json"} <= set(report.manifest.files)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tmp_path / "source" / "tokenizer.json").read_bytes()
    (tmp_path / "source").rename(tmp_path / "gone")
    with LLM(tmp_path / "out") as exported, LLM(tmp_path / "gone", n_ctx=64) as source:
        prompt = source.tokenizer.encode("abc")
        options: dict[str, Any] = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}
        assert exported.tokenizer.encode("abc") == prompt
        assert exported.generate(prompt, **options).token_ids == source.generate(prompt, **options).token_ids


def test_context_and_number_types_reach_the_manifest(tiny: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    report = export(tiny, tmp_path / "out", n_ctx=32, precision="f32", kv_type="f16", progress=lines.append)
    manifest = report.manifest
    assert (manifest.target, manifest.n_ctx, manifest.precision, manifest.kv_type) == ("cpu", 32, "f32", "f16")
    assert report.notes == ()
    assert lines
    assert open_model(report.folder).metadata["general.architecture"] == "llama"


def test_a_vocabulary_that_no_tokenizer_json_holds_is_noted(tiny: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd.gguf"
    odd.write_bytes(tiny.read_bytes().replace(b"an d", b"in d"))  # a merge that leads to no token
    report = export(odd, tmp_path / "out")
    assert "tokenizer.json" not in report.manifest.files
    assert "onnxruntime-genai cannot run this folder" in report.notes[0]
    assert "'ind' is no token" in report.notes[0]
    with LLM(tmp_path / "out") as llm:
        assert llm.generate("the", max_tokens=2, ignore_eos=True).n_generated == 2


@pytest.mark.parametrize(
    ("target", "option"),
    [
        ("cpu", {"chunk": 16}),
        ("cpu", {"soc": "SM8650"}),
        ("cpu", {"calibration": "text.txt"}),
        ("cpu", {"weight_bits": 4}),
        ("nnapi", {"precision": "int8"}),
        ("nnapi", {"soc": "SM8650"}),
        ("qnn", {"kv_type": "f16"}),
        ("qnn", {"requantize": "q4_0"}),
    ],
)
def test_an_option_of_another_target_is_refused(target: str, option: dict[str, Any], tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=f"option {next(iter(option))} belongs to .*not to '{target}'"):
        export(tiny, tmp_path / "out", target=target, **option)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"target": "tpu"}, "cpu, qnn, nnapi"),
        ({"precision": "int4"}, "int8, f32"),
        ({"kv_type": "q8"}, "f32, f16"),
        ({"requantize": "q5_0"}, "q4_0, q8_0"),
        ({"n_ctx": 0}, "at least 1"),
        ({"n_ctx": 129}, "trained for 128 tokens"),
        ({"target": "qnn", "weight_bits": 5}, "8, 4"),
        ({"target": "nnapi", "chunk": 0}, "at least 1"),
    ],
)
def test_wrong_values_are_refused(wrong: dict[str, Any], text: str, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=text):
        export(tiny, tmp_path / "out", **wrong)


def test_what_is_there_is_not_lost(tiny: Path, tmp_path: Path) -> None:
    out = export(tiny, tmp_path / "out").folder
    before = (out / "edgelm.json").stat().st_mtime_ns
    with pytest.raises(InvalidRequestError, match="overwrite"):
        export(tiny, out)
    with pytest.raises(InvalidRequestError, match="an exported model already"):
        export(out, tmp_path / "again")
    assert (out / "edgelm.json").stat().st_mtime_ns == before
    export(tiny, out, n_ctx=16, overwrite=True)
    assert json.loads((out / "edgelm.json").read_text())["n_ctx"] == 16
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").write_text("Dear")
    with pytest.raises(InvalidRequestError, match="does not exist yet"):
        export(tiny, other, overwrite=True)
    assert (other / "letter.txt").read_text() == "Dear"


def test_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"no model file or folder"):
        export(tmp_path / "none.gguf", tmp_path / "out")


# -- calibration -----------------------------------------------------------------------------------------------------------------------


def test_calibration_begins_with_a_conversation_and_notes_what_is_left_out(tiny: Path) -> None:
    with GGUFFile(tiny) as file:
        metadata = dict(file.metadata)
    tokenizer, notes = Tokenizer.from_metadata(metadata), list[str]()
    tokens = calibration_tokens(metadata, "the end", notes)
    assert tokenizer.decode(tokens[:2]) == "<|im_start|>u"
    assert tokenizer.decode(tokens).endswith("<|im_start|>assistant\nthe end")
    assert notes == []
    assert len(calibration_tokens(metadata, "x" * 5000, notes)) == MAX_CALIBRATION_TOKENS
    assert notes.pop().startswith(f"calibrated on the first {MAX_CALIBRATION_TOKENS} of the text's ")
    metadata["tokenizer.chat_template"] = "{{ raise_exception('only questions') }}"
    assert tokenizer.decode(calibration_tokens(metadata, "the end", notes)) == "the end"
    assert "only questions" in notes[0]
    del metadata["tokenizer.chat_template"]
    assert tokenizer.decode(calibration_tokens(metadata, None, [])).startswith("The event had every promise of happiness")


@pytest.mark.parametrize(("content", "text"), [(None, "cannot be read"), (b"\xff\xfe\x00", "UTF-8"), (b" \n", "is empty")])
def test_a_calibration_text_that_is_none(content: bytes | None, text: str, tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidRequestError, match=text):
        export(tiny, tmp_path / "out", target="qnn", calibration=file)


# -- the command -----------------------------------------------------------------------------------------------------------------------


def test_the_command_prints_what_each_format_became(tiny: Path, tmp_path: Path) -> None:
    out, err = edgelm("export", tiny, tmp_path / "out", "--ctx", "64", "--kv-type", "f16")
    facts = dict(line.split(None, 1) for line in out.split("\n\n")[0].splitlines())
    assert facts["target"] == "cpu"
    assert facts["context"] == "64 tokens"
    assert facts["precision"] == "int8 activations, f16 KV cache"
    row = next(line.split() for line in out.splitlines() if line.startswith("Q4_0"))
    assert "exact" in row
    assert "layers" in err
    assert "tokens/s" in edgelm("run", tmp_path / "out", "the", "--max-tokens", "2")[1]


def test_the_command_says_which_nodes_nnapi_takes(tiny: Path, tmp_path: Path) -> None:
    out, err = edgelm("export", tiny, tmp_path / "out", "--target", "nnapi", "--chunk", "8")
    assert "prefill.onnx (8 tokens), decode.onnx (1 tokens)" in out
    assert "NNAPI would run" in out
    assert "checker" in err


def test_the_command_refuses_what_cannot_be(tiny: Path, tmp_path: Path) -> None:
    assert "belongs to the target qnn" in edgelm("export", tiny, tmp_path / "out", "--soc", "SM8650", code=1)[1]
    assert "choose one of cpu, qnn, nnapi" in edgelm("export", tiny, tmp_path / "out", "--target", "tpu", code=1)[1]
    assert "Usage" in edgelm("export", tiny, code=2)[1]
