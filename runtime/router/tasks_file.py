"""Questions whose answers are known, from a file of JSON lines.

    {"task": "addition", "prompt": "What is 3 + 4?", "answer": "7", "grader": "number"}
    {"task": "fruit", "messages": [{"role": "user", "content": "A) car B) pear. Which is a fruit?"}], "answer": "B", "choices": ["A", "B"]}

The grader is "choice" where there are choices and "exact" where there are none, unless it is named.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelm.errors import InvalidRequestError
from edgelm.runtime.router.grade import Grader, check_grader, is_right

_KEYS = {"task", "prompt", "messages", "answer", "choices", "grader"}
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Task:
    """A question.

    Attributes:
        task: the kind of it; questions of one kind resemble each other.
        messages: the conversation that asks it.
        answer: what is right.
    """

    task: str
    messages: tuple[Mapping[str, str], ...]
    answer: str
    grader: Grader
    choices: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Another one for another question."""
        return hashlib.sha256(json.dumps([dict(message) for message in self.messages], sort_keys=True).encode()).hexdigest()[:16]

    def grade(self, text: str) -> bool:
        """Whether a text answers it."""
        return is_right(self.grader, text, self.answer, self.choices)


def read_tasks(path: Path) -> tuple[Task, ...]:
    """All questions of a file, in order. Empty lines are left out.

    Raises:
        InvalidRequestError: the file cannot be read, holds none, holds one twice, or a line is not as above; with the line's number.
    """
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"{path} cannot be read ({error}); give a file of JSON lines in UTF-8") from None
    tasks: dict[str, Task] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            task = _task(json.loads(line))
            if task.id in tasks:
                raise InvalidRequestError("this question was asked in an earlier line; leave one of them out")
        except json.JSONDecodeError as error:
            raise InvalidRequestError(f"{path}, line {number}: it is no JSON ({error.msg}, at column {error.colno})") from None
        except RecursionError:
            raise InvalidRequestError(f"{path}, line {number}: it is nested too deeply") from None
        except InvalidRequestError as error:
            raise InvalidRequestError(f"{path}, line {number}: {error}") from None
        tasks[task.id] = task
    if not tasks:
        raise InvalidRequestError(f"{path} holds no questions; give one in each line")
    return tuple(tasks.values())


def _task(row: Any) -> Task:
    if not isinstance(row, dict):
        raise InvalidRequestError("the line is no JSON object")
    if unknown := sorted(set(row) - _KEYS):
        raise InvalidRequestError(f"{', '.join(unknown)} is not known; a line may hold {', '.join(sorted(_KEYS))}")
    if ("prompt" in row) == ("messages" in row):
        raise InvalidRequestError('it must hold either "prompt" or "messages"')
    answer = _text(row, "answer")
    choices = row.get("choices", [])
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise InvalidRequestError('"choices" must be a list of texts')
    grader = check_grader(_text(row, "grader") if "grader" in row else "choice" if choices else "exact", answer, choices)
    messages = _messages(row["messages"]) if "messages" in row else ({"role": "user", "content": _text(row, "prompt")},)
    return Task(_text(row, "task"), messages, answer, grader, tuple(choices))


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise InvalidRequestError(f'"{key}" must be a text that is not empty; it is {value!r:.60}')
    return value


def _messages(value: Any) -> tuple[Mapping[str, str], ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise InvalidRequestError('"messages" must be a list of at least one')
    for message in value:
        if not isinstance(message, dict) or set(message) != {"role", "content"} or message["role"] not in _ROLES:
            raise InvalidRequestError(f'a message must hold "role" ({", ".join(_ROLES)}) and "content", and nothing else')
        if not isinstance(message["content"], str):
            raise InvalidRequestError('"content" must be a text')
    if value[-1]["role"] != "user":
        raise InvalidRequestError("the last message must be the user's, for it is what is answered")
    return tuple(value)
