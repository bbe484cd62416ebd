"""The `edgelm` command as its own process: output, exit codes, and no traceback whatever goes wrong."""

from __future__ import annotations

import inspect
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from tiny_folders import write_folder

from edgelm.runtime.commands.chat import chat
from edgelm.runtime.commands.run import run
from edgelm.runtime.sampling import SamplingParams

EDGELM = (sys.executable, "-c", "from edgelm.runtime.cli import main; main()")


def edgelm(*arguments: str | Path, stdin: str = "", code: int = 0) -> tuple[str, str]:
    """Run the command; returns its stdout and stderr, after checking the exit code and that there is no traceback."""
    done = subprocess.run([*EDGELM, *map(str, arguments)], input=stdin, capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in done.stderr
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def test_help_names_every_subcommand_without_loading_anything_heavy() -> None:
    heavy = "{'numpy', 'numba', 'httpx', 'gguf'} & set(sys.modules)"
    script = f"import sys; from edgelm.runtime.cli import main\ntry: main()\nexcept SystemExit: print(sorted({heavy}))"
    done = subprocess.run([sys.executable, "-c", script, "--help"], capture_output=True, text=True, check=True, timeout=60)
    assert all(name in done.stdout for name in ("run", "chat", "pull", "models", "inspect", "doctor"))
    assert done.stdout.rstrip().endswith("[]")


def test_version() -> None:
    import edgelm as package

    assert edgelm("--version")[0].strip() == package.__version__


@pytest.mark.parametrize("command", [run, chat])
def test_defaults_are_those_of_sampling_params(command: Callable[..., None]) -> None:
    defaults = {field.name: field.default for field in fields(SamplingParams)}
    parameters = inspect.signature(command).parameters
    shared = {name: one.default for name, one in parameters.items() if name in defaults and one.default is not None}
    assert shared == {name: defaults[name] for name in shared}
    assert {"temperature", "max_tokens", "top_p"} <= set(shared)


def test_run_streams_an_answer_and_a_line_of_statistics(smollm2_path: Path) -> None:
    out, err = edgelm("run", smollm2_path, "Name the capital of France.", "--temperature", "0", "--max-tokens", "20")
    assert "Paris" in out
    assert "tokens read" in err
    assert "tokens/s" in err


def test_run_by_name_reads_stdin_and_prints_json(smollm2_path: Path) -> None:
    assert smollm2_path.is_file()
    arguments = ("run", "smollm2-135m", "-", "--json", "--raw", "--seed", "1", "--max-tokens", "5", "--logprobs", "2")
    out, err = edgelm(*arguments, stdin="Once upon a time\n")
    record = json.loads(out)
    assert err == ""
    assert record["n_generated"] == len(record["token_ids"]) == len(record["logprobs"]) == 5
    assert record["finish_reason"] == "length"
    assert record["timings"]["tokens_per_second"] > 0
    assert len(record["logprobs"][0]["top"]) == 2
    assert json.loads(edgelm(*arguments, stdin="Once upon a time\n")[0])["text"] == record["text"]


def test_a_system_message_changes_the_answer(smollm2_path: Path) -> None:
    arguments = ("run", smollm2_path, "Who are you?", "--temperature", "0", "--max-tokens", "24", "--no-stats")
    plain, err = edgelm(*arguments)
    assert err == ""
    assert edgelm(*arguments, "--system", "You are a pirate called Redbeard.")[0] != plain


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("run",), 2, "model"),
        (("run", "smollm2-135m"), 2, "stdin is empty"),
        (("run", "smollm2-135m", "x", "--system", "y", "--raw"), 2, "--raw"),
        (("run", "smollm2-135m", "x", "--threads", "0"), 2, "--threads"),
        (("run", "smollm2-135m", "x", "--temperature", "-1"), 1, "temperature is -1.0"),
        (("run", "smollm2-135m", "x", "--precision", "int3"), 1, "int8, f32"),
        (("run", "smollm2-135m", "x", "--backend", "gpu"), 1, "edgelm has cpu"),
        (("run", "smollm2-136m", "x"), 1, "smollm2-135m, gemma3-270m"),
        (("run", "missing.gguf", "x"), 1, "no model file or folder 'missing.gguf'"),
        (("pull", "hf:owner"), 1, "hf:owner/repo/file"),
        (("inspect", "missing.gguf"), 1, "missing.gguf"),
        (("run", "~no-such-user/model.gguf", "x"), 1, "check the path"),
        (("run", "smollm2-135m", "x", "--threads", "100000"), 1, "n_threads is 100000"),
        (("dance",), 2, "dance"),
    ],
)
def test_mistakes_are_one_clear_message(arguments: tuple[str, ...], code: int, message: str, smollm2_path: Path) -> None:
    assert smollm2_path.is_file()
    out, err = edgelm(*arguments, code=code)
    assert out == ""
    assert message in " ".join(err.split())
    if code == 1:
        assert err.startswith("edgelm: ")
        assert err.count("\n") == 1


def test_a_damaged_file(tmp_path: Path) -> None:
    file = tmp_path / "bad.gguf"
    file.write_bytes(b"GGUF\x03\x00\x00\x00 and then nothing sensible")
    _, err = edgelm("run", file, "x", code=1)
    assert str(file) in err


def test_a_closed_stdin(smollm2_path: Path) -> None:
    for arguments, code in ((("run", smollm2_path, "-"), 2), (("chat", smollm2_path), 0)):
        closed = ["sh", "-c", 'exec "$@" <&-', "sh", *EDGELM, *map(str, arguments)]
        done = subprocess.run(closed, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_output_that_cannot_be_written(smollm2_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        command = [*EDGELM, "run", str(smollm2_path), "Hi", "--max-tokens", "5"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("edgelm: the system refused")
    assert done.stderr.count("\n") == 1


def test_a_prompt_that_does_not_fit(smollm2_path: Path) -> None:
    _, err = edgelm("run", smollm2_path, "word " * 300, "--ctx", "64", code=1)
    assert "the context holds 64" in err


def test_a_closed_pipe_is_quiet(smollm2_path: Path) -> None:
    command = [*EDGELM, "run", str(smollm2_path), "Count to one hundred.", "--max-tokens", "300"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == ""
        process.wait(60)


def test_interrupting_run(smollm2_path: Path) -> None:
    command = [*EDGELM, "run", str(smollm2_path), "Count to one thousand.", "--max-tokens", "2000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_chat_keeps_the_conversation_until_reset(smollm2_path: Path) -> None:
    lines = "My name is Zorblax.\nWhat is my name?\n/reset\nWhat is my name?\n/what\n/exit\n"
    out, err = edgelm("chat", smollm2_path, "--temperature", "0", "--max-tokens", "24", stdin=lines)
    first, second, third = [answer for answer in out.split("\n") if answer][:3]
    assert first
    assert "Zorblax" in second
    assert "Zorblax" not in third
    assert "begins anew" in err
    assert "/exit" in err  # help after the unknown command


def test_chat_says_when_the_context_is_full(smollm2_path: Path) -> None:
    lines = f"Hello.\n{'word ' * 200}\nBye.\n"
    out, err = edgelm("chat", smollm2_path, "--ctx", "100", "--max-tokens", "10", stdin=lines)
    assert "The conversation is full" in err
    assert "the context holds 100" in err
    assert len([line for line in out.split("\n") if line]) >= 2


def test_interrupting_chat_stops_the_answer_only(smollm2_path: Path) -> None:
    command = [*EDGELM, "chat", str(smollm2_path), "--max-tokens", "3000"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("Write a very long story about a dragon, with many chapters.\n")
        process.stdin.flush()
        process.stdout.read(5)
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        _, err = process.communicate("/exit\n", timeout=60)
    assert process.returncode == 0, err
    assert "[stopped]" in err


def test_a_model_without_a_template_continues_text_and_does_not_chat(gemma3_path: Path) -> None:
    out, _ = edgelm("run", gemma3_path, "The capital of France is", "--temperature", "0", "--max-tokens", "8")
    assert "capital" in out
    assert "template" in edgelm("chat", gemma3_path, stdin="Hi\n", code=1)[1]
    assert "template" in edgelm("run", gemma3_path, "Hi", "--system", "Be brief.", code=2)[1]


def test_inspect(smollm2_path: Path) -> None:
    out, _ = edgelm("inspect", smollm2_path, "--ctx", "1024")
    for fact in (
        "llama",
        "134,515,008",
        "Q4_1",
        "210",
        "9 heads and 3 KV heads",
        "KV cache for 1024 tokens",
        "49,152 tokens",
        "<|im_end|>",
    ):
        assert fact in out
    assert edgelm("inspect", smollm2_path, "--template")[0].startswith("{% for message in messages %}")


def test_inspect_and_run_of_a_hugging_face_folder(tmp_path: Path) -> None:
    write_folder(tmp_path, "Qwen3ForCausalLM", "BF16", n_shards=2)
    out, _ = edgelm("inspect", tmp_path)
    for fact in ("qwen3", "BF16", "tokenizer.json of the folder", "'</s>'", "25 characters"):
        assert fact in out
    assert json.loads(edgelm("run", tmp_path, "aaa", "--json", "--max-tokens", "2")[0])["n_prompt_tokens"] == 4
    (tmp_path / "tokenizer.json").unlink()
    assert "(or tokenizer.json, in a folder)" in edgelm("run", tmp_path, "aaa", code=1)[1]


def test_models_and_pull_of_one_that_is_here(smollm2_path: Path) -> None:
    assert edgelm("pull", "smollm2-135m")[0].strip() == str(smollm2_path)
    out, _ = edgelm("models")
    assert str(smollm2_path.parent) in out
    assert "Apache-2.0" in out


def test_doctor() -> None:
    out, _ = edgelm("doctor")
    for fact in ("CPU features", "threads", "physical core", "cpuset", "CPU quota", "memory", "kernel cache", "backend cpu"):
        assert fact in out
