"""What an image's build is given: a folder, less what its .dockerignore leaves out."""

from __future__ import annotations

import re
import shutil
from pathlib import Path


def copy_context(source: Path, target: Path) -> None:
    """Copy the context into a folder of its own; links stay links, as an engine has it."""
    rules = ignore_rules((source / ".dockerignore").read_text(encoding="utf-8"))

    def left_out(folder: str, names: list[str]) -> list[str]:
        here = Path(folder).relative_to(source)
        return [name for name in names if is_ignored(rules, (here / name).as_posix())]

    shutil.copytree(source, target, symlinks=True, ignore=left_out)


Rule = tuple[re.Pattern[str], bool]


def ignore_rules(text: str) -> list[Rule]:
    """The lines of a .dockerignore: what each fits, and whether it leaves out or takes back.

    Raises:
        ValueError: a line is of a kind that is not known here, such as one that takes back a part of a folder.
    """
    lines = [line.strip() for line in text.splitlines()]
    rules = [(line.removeprefix("!").strip("/"), not line.startswith("!")) for line in lines if line and line[0] != "#"]
    for glob, excludes in rules:
        if re.search(r"[\[\]\\]", glob) or (not excludes and "/" in glob):
            raise ValueError(f"{glob} in .dockerignore is of a kind that is not known here")
    return [(_pattern(glob), excludes) for glob, excludes in rules]


def is_ignored(rules: list[Rule], path: str) -> bool:
    """Whether a path, with slashes, is left out: the last rule that fits it or a folder above it decides."""
    parts = path.split("/")
    names = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
    ignored = False
    for pattern, excludes in rules:
        if any(pattern.fullmatch(name) for name in names):
            ignored = excludes
    return ignored


def _pattern(glob: str) -> re.Pattern[str]:
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(known.get(part, re.escape(part)) for part in re.findall(r"\*\*/|\*\*|\*|\?|[^*?]+", glob)))
