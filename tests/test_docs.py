"""The documentation says what the code does: links, names, options, and the Python in it, which is run."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

import edgelm
from edgelm.bench.cli import app as edgebench
from edgelm.errors import EdgeLMError
from edgelm.runtime.catalogue import CATALOGUE
from edgelm.runtime.cli import app
from edgelm.runtime.llm import LLM

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted((ROOT / "docs").rglob("*.md"))


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def fenced(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_every_page_can_be_reached_from_the_readme() -> None:
    readme = text_of("README.md")
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"(docs/{page.name})" not in readme] == []


@pytest.mark.parametrize("page", ["README.md", "docs/python-api.md"])
def test_the_python_in_the_page_runs(page: str, smollm2_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert smollm2_path.is_file()
    code = "\n".join(fenced(page, "python"))
    assert code
    namespace: dict[str, object] = {}
    exec(compile(code, page, "exec"), namespace)
    assert capsys.readouterr().out


def test_every_public_name_is_importable_and_documented() -> None:
    page = text_of("docs/python-api.md")
    for name in edgelm.__all__:
        assert getattr(edgelm, name) is not None
        assert name.startswith("_") or f"`{name}`" in page, name
    for name, member in inspect.getmembers(LLM):
        if not name.startswith("_"):
            assert re.search(rf"\b{name}\b", page), name
            assert inspect.getdoc(member), name


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = edgelm.Nonsense  # type: ignore[attr-defined]


def test_the_error_tree_in_the_docstring_is_the_real_one() -> None:
    assert edgelm.errors.__doc__ is not None
    drawn = set(re.findall(r"\w+Error", edgelm.errors.__doc__)) - {"ValueError"}

    def below(error: type[EdgeLMError]) -> set[str]:
        own = {one for one in error.__subclasses__() if one.__module__ == "edgelm.errors"}
        return {error.__name__}.union(*map(below, own))

    assert drawn == below(EdgeLMError)


def test_every_command_and_option_is_documented_and_no_other() -> None:
    page = text_of("docs/command-line.md")
    commands = dict(commands_below(typer.main.get_command(app)))
    assert re.findall(r"^##+ edgelm ([a-z]+(?: [a-z]+)*)", page, re.MULTILINE) == list(commands)
    options = set().union(*map(options_of, commands.values()))
    assert set(re.findall(r"`(--[a-z0-9-]+)", page)) - {"--help", "--version"} == options


def test_sub_commands_have_each_option_in_their_own_section() -> None:
    sections = re.split(r"^##+ ", text_of("docs/command-line.md"), flags=re.MULTILINE)
    for name, command in commands_below(typer.main.get_command(app)):
        if " " in name:
            section = next(section for section in sections if section.startswith(f"edgelm {name}"))
            assert set(re.findall(r"`(--[a-z0-9-]+)", section)) == options_of(command), name


def commands_below(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Commands with their whole names, each group before what is in it."""
    for name, command in group.commands.items():
        yield f"{prefix}{name}", command
        if hasattr(command, "commands"):
            yield from commands_below(command, f"{prefix}{name} ")


def options_of(command: Any) -> set[str]:
    names = [one for parameter in command.params for one in (*parameter.opts, *parameter.secondary_opts)]
    return {one for one in names if one.startswith("--")} - {"--help"}


def test_every_command_and_option_of_edgebench_is_documented() -> None:
    pages = "".join(text_of(f"docs/{name}.md") for name in ("benchmark", "load", "power", "quality", "quantization", "records", "roofline"))

    def check(name: str, command: Any) -> None:
        assert f"edgebench {name}" in pages, name
        for parameter in command.params:
            names = [one for one in (*parameter.opts, *parameter.secondary_opts) if one.startswith("--")]
            assert not names or any(re.search(rf"[`[ ]{one}\b", pages) for one in names), (name, names)
        for below, other in getattr(command, "commands", {}).items():
            check(f"{name} {below}", other)

    for name, command in typer.main.get_command(edgebench).commands.items():  # type: ignore[attr-defined]
        check(name, command)


def test_the_catalogue_page_names_every_model_with_its_licence() -> None:
    page = text_of("docs/models.md")
    for model in CATALOGUE.values():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{model.name}`"))
        assert f"{(model.n_bytes or 0) / 1e6:.0f} MB" in row
        assert model.licence.split(",")[0] in row


def test_readme_commands_are_targets_of_the_makefile() -> None:
    makefile = text_of("Makefile")
    for target in re.findall(r"^make (\w+)", "\n".join(fenced("README.md", "sh")), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
