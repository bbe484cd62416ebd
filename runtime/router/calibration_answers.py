"""What a model answers to the questions of a calibration, and how certain it was; kept in a file, so that it need not be asked again."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgelm.errors import ClosedError, InvalidRequestError
from edgelm.runtime.certainty import TokenCertainty
from edgelm.runtime.chat_model import Asker, ChatModel, ChatRequest, Finish, TextDelta
from edgelm.runtime.router.json_file import write_text
from edgelm.runtime.router.tasks_file import Task
from edgelm.runtime.router.verification import self_verification
from edgelm.runtime.sampling import SamplingParams

_VERSION = 1
_SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed", "max_tokens")

Say = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        question: Task.id of what was asked.
        sample: which of the answers to the same question, from 0.
        finish: why it ended: "stop" or "length".
        certainties: of its tokens and its end, as TextDelta tells them.
        said_yes: p(yes) of the model, asked whether it is right; None where it was not asked, or it cannot be told.
    """

    question: str
    sample: int
    text: str
    finish: str
    certainties: tuple[TokenCertainty, ...]
    said_yes: float | None = None


@dataclass(frozen=True)
class Answers:
    """Answers of one model.

    Attributes:
        model_sha256: of the model's file.
        sampling: the settings that they were drawn with, by name.
    """

    model_sha256: str
    sampling: Mapping[str, float | int | None]
    rows: tuple[Answer, ...]


def settings_of(params: SamplingParams) -> dict[str, float | int | None]:
    """What of the sampling parameters makes other answers, by name."""
    return {name: getattr(params, name) for name in _SETTINGS}


async def ask(
    model: ChatModel,
    tasks: Sequence[Task],
    params: SamplingParams,
    samples: int = 1,
    n_at_once: int = 32,
    say: Say | None = None,
    verifies: bool = False,
) -> tuple[Answer, ...]:
    """The model's answers to all questions, many computed together.

    Args:
        params: how tokens are chosen; with a seed, sample k of every question has seed + k.
        samples: answers to each question.
        n_at_once: questions that are asked together.
        say: told how many of how many questions are answered.
        verifies: ask the model about each of its answers, too.

    Raises:
        InvalidRequestError, TemplateError: a question cannot be asked.
    """
    places = asyncio.Semaphore(n_at_once)
    n_done = 0

    async def one(task: Task) -> list[Answer]:
        nonlocal n_done
        async with places:
            found = await _ask_one(model, task, replace(params, certainty=True), samples)
            if verifies:
                found = [await _verified(model, task, answer) for answer in found]
        n_done += 1
        if say is not None:
            say("asking", n_done, len(tasks))
        return found

    try:
        async with asyncio.TaskGroup() as group:
            jobs = [group.create_task(one(task)) for task in tasks]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return tuple(answer for job in jobs for answer in job.result())


async def _ask_one(model: ChatModel, task: Task, params: SamplingParams, samples: int) -> list[Answer]:
    texts, finishes = [""] * samples, [""] * samples
    certainties: list[list[TokenCertainty]] = [[] for _ in range(samples)]
    events = await model.chat(ChatRequest(task.messages, params, samples), Asker())
    try:
        async for event in events:
            if isinstance(event, TextDelta):
                texts[event.choice] += event.text
                certainties[event.choice] += event.certainties or ()
            elif isinstance(event, Finish):
                finishes[event.choice] = event.reason
    finally:
        events.close()
    if not all(finishes):
        raise ClosedError("the model ended in the middle of an answer; load it anew")
    return [Answer(task.id, i, texts[i], finishes[i], tuple(certainties[i])) for i in range(samples)]


async def _verified(model: ChatModel, task: Task, answer: Answer) -> Answer:
    said_yes = await self_verification(model, ChatRequest(task.messages), answer.text, Asker())
    return replace(answer, said_yes=said_yes)


def save_answers(path: Path, answers: Answers) -> None:
    """Write JSON lines: what they are of, then an answer in each.

    Raises:
        OSError: the disk is full, or the folder may not be written to.
    """
    head = {"version": _VERSION, "model_sha256": answers.model_sha256, "sampling": dict(answers.sampling)}
    lines = [head, *(asdict(row) | {"certainties": [_numbers(one) for one in row.certainties]} for row in answers.rows)]
    write_text(path, "".join(json.dumps(line, allow_nan=False, ensure_ascii=False) + "\n" for line in lines))


def read_answers(path: Path) -> Answers:
    """What save_answers wrote.

    Raises:
        InvalidRequestError: the file cannot be read or is damaged; with the line's number.
    """
    number = 1
    try:
        first, *others = path.read_text("utf-8").rstrip("\n").split("\n")
        head = json.loads(first)
        if head["version"] != _VERSION:
            raise ValueError(f"its version is {head['version']}, and only {_VERSION} is read")
        rows = []
        for number, line in enumerate(others, 2):  # noqa: B007, told in the error
            row = json.loads(line)
            certainties = tuple(_certainty(one) for one in row.pop("certainties"))
            rows.append(Answer(**row, certainties=certainties))
        return Answers(str(head["model_sha256"]), dict(head["sampling"]), tuple(rows))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidRequestError(
            f"{path}, line {number}: no answers of a calibration ({error}); delete it to ask the model again"
        ) from None


def _numbers(one: TokenCertainty) -> list[float | None]:
    """Rounded to what the logits are good for; None for nan, which JSON cannot say."""
    return [round(value, 6) if math.isfinite(value) else None for value in (one.logprob, one.margin, one.entropy)]


def _certainty(values: Any) -> TokenCertainty:
    logprob, margin, entropy = (math.nan if value is None else float(value) for value in values)
    return TokenCertainty(logprob, margin, entropy)
