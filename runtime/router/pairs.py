"""Examples to learn from: questions, and how well the model here and the one in the cloud answered them."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from edgelm.errors import InvalidRequestError
from edgelm.runtime.router.logistic import Array
from edgelm.runtime.router.signals import Signals, signals_of

_KEYS = {"task", "prompt", "messages", "weak", "strong"}


@dataclass(frozen=True)
class Pair:
    """A question and two judged answers.

    Attributes:
        task: what kind of question it is, as "mmlu/virology"; what is before a slash names the family.
        messages: the conversation, as in a chat request.
        weak, strong: how right the answers of the model here and of the one in the cloud are, from 0 to 1.
    """

    task: str
    messages: tuple[Mapping[str, Any], ...]
    weak: float
    strong: float


@dataclass(frozen=True)
class Examples:
    """Pairs, as a router sees them.

    Attributes:
        signals: of each question.
        tasks: of each, str [n].
        weak, strong: float64 [n], from 0 to 1.
    """

    signals: tuple[Signals, ...]
    tasks: tuple[str, ...]
    weak: Array
    strong: Array

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> Self:
        """Look at each question."""
        return cls(
            tuple(signals_of(pair.messages) for pair in pairs),
            tuple(pair.task for pair in pairs),
            np.array([pair.weak for pair in pairs], np.float64),
            np.array([pair.strong for pair in pairs], np.float64),
        )

    def __len__(self) -> int:
        return len(self.signals)

    def part(self, rows: Sequence[int]) -> Examples:
        """Some of them."""
        at = np.array(rows, np.intp)
        return Examples(tuple(self.signals[n] for n in rows), tuple(self.tasks[n] for n in rows), self.weak[at], self.strong[at])


def read_pairs(path: Path) -> list[Pair]:
    """Read a file of one JSON object a line, compressed if its name ends in .gz.

    Each has "task", "weak" and "strong", and either "prompt", the text of a single question, or "messages".

    Raises:
        InvalidRequestError: the file cannot be read, has no pairs, or a line is none.
    """
    pairs: list[Pair] = []
    try:
        with _opened(path) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    try:
                        pairs.append(_pair(line))
                    except ValueError as error:
                        raise InvalidRequestError(f"{path}, line {number}: {error}") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"{path} cannot be read ({error}); give a .jsonl or .jsonl.gz of pairs") from None
    if not pairs:
        raise InvalidRequestError(f"{path} holds no pairs; give one JSON object a line")
    return pairs


def without(pairs: Sequence[Pair], tasks: Sequence[str]) -> list[Pair]:
    """The pairs that are of none of these tasks.

    Raises:
        InvalidRequestError: there is no pair of one of them.
    """
    if unknown := sorted(set(tasks) - {pair.task for pair in pairs}):
        raise InvalidRequestError(f"no pair is of the task {unknown[0]!r:.80}; give a task as the file names it")
    return [pair for pair in pairs if pair.task not in tasks]


def digest(pairs: Sequence[Pair]) -> str:
    """A name for exactly these pairs in this order, 16 hexadecimal digits of a SHA-256."""
    content = json.dumps([[pair.task, [dict(message) for message in pair.messages], pair.weak, pair.strong] for pair in pairs])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _opened(path: Path) -> IO[str]:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")


def _pair(line: str) -> Pair:
    """
    Raises:
        ValueError: it is no pair; with what is wrong.
    """
    try:
        row = json.loads(line)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(row, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004 - of what a file holds, not of an argument
    if unknown := sorted(row.keys() - _KEYS):
        raise ValueError(f"it has the unknown key {unknown[0]!r:.80}; known are {', '.join(sorted(_KEYS))}")
    if ("prompt" in row) == ("messages" in row):
        raise ValueError('it needs either "prompt" or "messages"')
    task = row.get("task")
    if not isinstance(task, str) or not task.strip():
        raise ValueError('"task" must be a text that is not empty')
    messages = [{"role": "user", "content": row["prompt"]}] if "prompt" in row else row["messages"]
    _check_messages(messages)
    return Pair(task, tuple(messages), _score(row, "weak"), _score(row, "strong"))


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise ValueError('"messages" must be a list of objects that is not empty')
    for message in messages:
        content = message.get("content")
        is_text = isinstance(content, str) or (isinstance(content, list) and all(isinstance(part, dict) for part in content))
        if not isinstance(message.get("role"), str) or not (is_text or (content is None and message["role"] == "assistant")):
            raise ValueError('"prompt" must be a text; a message needs a "role", and a "content" that is a text or a list of parts')
    if not any(message["role"] == "user" for message in messages):
        raise ValueError('no message is of the role "user"')


def _score(row: Mapping[str, Any], name: str) -> float:
    value = row.get(name)
    if isinstance(value, bool):
        return float(value)
    if not isinstance(value, (int, float)) or not math.isfinite(value) or not 0 <= value <= 1:
        raise ValueError(f'"{name}" must be a number from 0 (wrong) to 1 (right), and is {value!r:.80}')
    return float(value)
