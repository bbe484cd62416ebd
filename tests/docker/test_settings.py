"""What the image, the compose file and the systemd unit say fits together and fits `edgelm serve`."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from build_context import ignore_rules, is_ignored
from dockerfile import Instruction, parse

from edgelm.runtime.cli import app

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"


def serve_options(command: list[str], tmp_path: Path) -> dict[str, Any]:
    """What `edgelm serve` understands of a command line, whose key file is taken to be there."""
    program, *arguments = command
    assert program == "serve"
    key = tmp_path / "key"
    key.write_text("key")
    arguments = [str(key) if before == "--api-key-file" else word for before, word in zip(["", *arguments], arguments, strict=False)]
    serve = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    return dict(serve.make_context("serve", arguments).params)


def last_stage() -> dict[str, list[Instruction]]:
    instructions = parse((DOCKER / "Dockerfile").read_text(encoding="utf-8"))
    begin = max(index for index, instruction in enumerate(instructions) if instruction.name == "FROM")
    stage: dict[str, list[Instruction]] = {}
    for instruction in instructions[begin:]:
        stage.setdefault(instruction.name, []).append(instruction)
    return stage


@pytest.fixture(scope="module")
def service() -> dict[str, Any]:
    (one,) = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))["services"].values()
    return dict(one)


@pytest.fixture(scope="module")
def unit() -> dict[str, dict[str, list[str]]]:
    """The systemd unit: sections, and in each the values of every name in order."""
    sections: dict[str, dict[str, list[str]]] = {}
    for line in (DOCKER / "edgelm.service").read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"\[(\w+)\]", line):
            section: dict[str, list[str]] = sections.setdefault(match[1], {})
        elif line and not line.startswith("#"):
            name, equals, value = line.partition("=")
            assert equals, line
            section.setdefault(name, []).append(value)
    return sections


def test_the_image_is_small_and_its_user_is_not_root() -> None:
    stage = last_stage()
    assert "RUN" not in stage, "the last stage only copies, so that nothing of a build is left in it"
    assert [instruction.text for instruction in stage["USER"]] == ["10001:10001"]
    (labels,) = stage["LABEL"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert labels.pairs()["org.opencontainers.image.licenses"] == project["license"]


def test_the_image_serves_at_the_port_that_it_exposes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = last_stage()
    env = stage["ENV"][0].pairs()
    for name, value in env.items():
        if name.startswith("EDGELM_"):
            monkeypatch.setenv(name, value)
    options = serve_options(stage["CMD"][0].exec_form(), tmp_path)
    assert (options["host"], str(options["port"])) == ("0.0.0.0", stage["EXPOSE"][0].text)
    assert stage["VOLUME"][0].words() == [env["EDGELM_HOME"]]


def test_nothing_but_the_sources_of_the_wheel_is_built_from() -> None:
    rules = ignore_rules((ROOT / ".dockerignore").read_text(encoding="utf-8"))
    kept = {path.name for path in ROOT.iterdir() if not is_ignored(rules, path.name)}
    assert kept == {"LICENSE", "README.md", "pyproject.toml", "edgelm", "quant", "backends", "runtime", "bench"}
    assert is_ignored(rules, "runtime/__pycache__/llm.cpython-311.pyc")
    assert is_ignored(rules, "docker/edgelm.key")


def test_compose_opens_the_server_to_this_machine_and_to_who_has_the_key(service: dict[str, Any], tmp_path: Path) -> None:
    port = last_stage()["EXPOSE"][0].text
    assert service["ports"] == [f"127.0.0.1:8080:{port}"]
    options = serve_options(service["command"], tmp_path)
    assert options["model"] == "smollm2-135m"
    (secret,) = service["secrets"]
    assert service["command"][service["command"].index("--api-key-file") + 1] == f"/run/secrets/{secret}"
    whole = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
    assert f"docker/{whole['secrets'][secret]['file']}" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    (volume,) = service["volumes"]
    name, place = volume.split(":")
    assert name in whole["volumes"]
    assert [place] == last_stage()["VOLUME"][0].words()
    assert (DOCKER / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


def test_compose_takes_from_the_container_what_it_does_not_need(service: dict[str, Any], tmp_path: Path) -> None:
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert float(service["stop_grace_period"].removesuffix("s")) > serve_options(service["command"], tmp_path)["grace"] + 10


def test_the_unit_starts_the_server_with_its_key(unit: dict[str, dict[str, list[str]]], tmp_path: Path) -> None:
    service = unit["Service"]
    program, *command = service["ExecStart"][0].split()
    assert program == "/opt/edgelm/bin/edgelm"
    options = serve_options(command, tmp_path)
    assert (options["host"], options["port"], options["model"]) == ("127.0.0.1", 8080, "smollm2-135m")
    credential, _, _ = service["LoadCredential"][0].partition(":")
    assert command[command.index("--api-key-file") + 1] == f"${{CREDENTIALS_DIRECTORY}}/{credential}"
    assert float(service["TimeoutStopSec"][0]) > options["grace"] + 10
    assert service["Type"] == ["exec"]
    assert service["Restart"] == ["on-failure"]
    assert "EDGELM_HOME=%S/edgelm" in service["Environment"][0].split()
    assert service["StateDirectory"] == ["edgelm"]
    assert unit["Install"] == {"WantedBy": ["multi-user.target"]}


def test_the_unit_is_shut_in_but_may_run_what_it_compiles(unit: dict[str, dict[str, list[str]]]) -> None:
    service = unit["Service"]
    assert "MemoryDenyWriteExecute" not in service
    expected = {"DynamicUser": "yes", "ProtectSystem": "strict", "NoNewPrivileges": "yes", "PrivateTmp": "yes", "CapabilityBoundingSet": ""}
    assert {name: service[name] for name in expected} == {name: [value] for name, value in expected.items()}
    assert set(service["RestrictAddressFamilies"][0].split()) == {"AF_INET", "AF_INET6", "AF_UNIX"}
    assert service["SystemCallFilter"][0] == "@system-service"
