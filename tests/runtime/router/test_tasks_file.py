"""Files of questions: what is read, and what is refused with the number of its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from certainty_tasks import tasks

from edgelm.errors import InvalidRequestError
from edgelm.runtime.router.tasks_file import read_tasks

GOOD: dict[str, Any] = {"task": "sum", "prompt": "1 + 1?", "answer": "2"}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), "utf-8")
    return path


def test_questions_are_read_in_order(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "A or B?"}]
    choice = {"task": "pick", "messages": messages, "answer": "B", "choices": ["A", "B"]}
    first, second = read_tasks(write(tmp_path / "t.jsonl", {**GOOD, "grader": "number"}, "", choice))
    assert (first.task, first.grader, first.grade("It is 2."), first.grade("3")) == ("sum", "number", True, False)
    assert first.messages == ({"role": "user", "content": "1 + 1?"},)
    assert (second.grader, second.grade("(B)"), second.messages) == ("choice", True, tuple(messages))
    assert first.id != second.id


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{", "it is no JSON"),
        ("[1]", "no JSON object"),
        ("[" * 100_000, "nested too deeply|no JSON"),
        ({**GOOD, "ansewr": "x"}, "ansewr is not known; a line may hold answer, choices, grader, messages, prompt, task"),
        ({**GOOD, "messages": []}, 'either "prompt" or "messages"'),
        ({"task": "sum", "answer": "2"}, 'either "prompt" or "messages"'),
        ({**GOOD, "prompt": " "}, '"prompt" must be a text that is not empty'),
        ({**GOOD, "answer": 2}, '"answer" must be a text that is not empty; it is 2'),
        ({**GOOD, "grader": "fuzzy"}, "there is no grader 'fuzzy'"),
        ({**GOOD, "choices": "AB"}, "list of texts"),
        ({**GOOD, "choices": ["1", "3"]}, "none of the choices 1, 3"),
        ({"task": "t", "messages": [{"role": "user"}], "answer": "x"}, 'must hold "role"'),
        ({"task": "t", "messages": [{"role": "user", "content": 1}], "answer": "x"}, "must be a text"),
        ({"task": "t", "messages": [{"role": "assistant", "content": "x"}], "answer": "x"}, "must be the user's"),
    ],
)
def test_a_line_that_is_wrong_is_named(row: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=rf"(?s)t\.jsonl, line 3: .*({says})"):
        read_tasks(write(tmp_path / "t.jsonl", GOOD, "", row))


def test_the_same_question_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="line 2: this question was asked"):
        read_tasks(write(tmp_path / "t.jsonl", GOOD, {**GOOD, "answer": "3"}))


def test_no_file_and_no_questions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="cannot be read"):
        read_tasks(tmp_path / "none.jsonl")
    with pytest.raises(InvalidRequestError, match="holds no questions"):
        read_tasks(write(tmp_path / "t.jsonl", "", " "))


def test_the_questions_that_come_with_the_tests_are_sound(tmp_path: Path) -> None:
    rows = list(tasks(5, 1))
    assert rows == list(tasks(5, 1))
    assert rows != list(tasks(5, 2))
    found = read_tasks(write(tmp_path / "t.jsonl", *rows))
    assert len(found) == len(rows) > 150
    assert len({task.task for task in found}) > 30
    assert all(task.grade(task.answer) for task in found)
