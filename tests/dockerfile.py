"""Dockerfiles, read as BuildKit reads them, as far as edgelm's goes: what is not known here is an error."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

FLAGS: Mapping[str, frozenset[str]] = {
    "ARG": frozenset(),
    "CMD": frozenset(),
    "COPY": frozenset({"from", "chown"}),
    "ENTRYPOINT": frozenset(),
    "ENV": frozenset(),
    "EXPOSE": frozenset(),
    "FROM": frozenset(),
    "HEALTHCHECK": frozenset({"interval", "timeout", "start-period", "retries"}),
    "LABEL": frozenset(),
    "RUN": frozenset({"mount"}),
    "STOPSIGNAL": frozenset(),
    "USER": frozenset(),
    "VOLUME": frozenset(),
    "WORKDIR": frozenset(),
}
"""The known instructions, and the flags of each."""


class DockerfileError(Exception):
    """A Dockerfile that says what no engine, or not this reader, understands."""


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        name: in capitals.
        flags: values of its --flags.
        text: what follows, with continued lines joined.
        line: its first line, from 1.
    """

    name: str
    flags: Mapping[str, str]
    text: str
    line: int

    def words(self) -> list[str]:
        """The words of the shell form."""
        return shlex.split(self.text)

    def exec_form(self) -> list[str]:
        """The words of the exec form, which is JSON.

        Raises:
            DockerfileError: the instruction has the shell form, in which a shell would stand between the engine's signals and the program.
        """
        try:
            words = json.loads(self.text)
        except ValueError:
            words = None
        if not (isinstance(words, list) and words and all(isinstance(word, str) for word in words)):
            raise self.error(f"{self.text} is not in exec form, a JSON list of strings")
        return words

    def pairs(self) -> dict[str, str]:
        """The NAME=VALUE pairs."""
        found = [word.partition("=") for word in self.words()]
        if not found or not all(name and equals for name, equals, _ in found):
            raise self.error(f"{self.text} is not NAME=VALUE ...")
        return {name: value for name, _, value in found}

    def error(self, reason: str) -> DockerfileError:
        return DockerfileError(f"line {self.line}, {self.name}: {reason}")


def parse(text: str) -> list[Instruction]:
    """
    Raises:
        DockerfileError: an instruction or a flag is not known.
    """
    instructions: list[Instruction] = []
    parts: list[str] = []  # of an instruction that is continued, with the spaces that begin its lines
    first = 0
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if stripped.startswith("#") or not stripped:
            continue
        first = first if parts else number
        parts.append(line.rstrip().removesuffix("\\"))
        if not stripped.endswith("\\"):
            instructions.append(_instruction("".join(parts).strip(), first))
            parts = []
    if parts:
        raise DockerfileError(f"line {first} is continued, but nothing follows")
    return instructions


def _instruction(text: str, line: int) -> Instruction:
    name, _, rest = text.partition(" ")
    name = name.upper()
    if name not in FLAGS:
        raise DockerfileError(f"line {line}: {name} is not an instruction that is known here")
    flags: dict[str, str] = {}
    rest = rest.strip()
    while match := re.match(r"--([a-z-]+)=(\S+)\s*", rest):
        if match[1] not in FLAGS[name]:
            raise DockerfileError(f"line {line}, {name}: the flag --{match[1]} is not known here")
        flags[match[1]] = match[2]
        rest = rest[match.end() :]
    if not rest:
        raise DockerfileError(f"line {line}, {name}: nothing follows")
    return Instruction(name, flags, rest, line)


def substitute(instruction: Instruction, variables: Mapping[str, str]) -> Instruction:
    """The instruction with $NAME and ${NAME} replaced.

    Raises:
        DockerfileError: a variable is not set, which an engine would take for empty.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in variables:
            raise instruction.error(f"{match[0]} is not set here")
        return variables[name]

    def replaced(text: str) -> str:
        done = re.sub(r"\$\{(\w+)\}|\$(\w+)", value, text)
        if "$" in re.sub(r"\$\{\w+\}|\$\w+", "", text):
            raise instruction.error(f"{text} holds a $ of a kind that is not known here")
        return done

    flags = {name: replaced(text) for name, text in instruction.flags.items()}
    return Instruction(instruction.name, flags, replaced(instruction.text), instruction.line)
