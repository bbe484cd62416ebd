"""An engine in a process of its own: its crash is one failed measurement, its memory and page faults are its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edgelm.bench.contestants import Contestant, with_sizes
from edgelm.bench.record import EngineRun, Opening, Phase, Trial
from edgelm.errors import InvalidRequestError, MeasurementError

_PATIENCE_S = 5.0
_LAST_WORDS = 300


class EngineProcess:
    """A contestant in a new process; nothing is opened before `open`.

    Args:
        contestant: who.
        origin: `time.perf_counter()` at the record's start; all times given are seconds since then.
        progress: called with a line whenever the engine begins something that takes long.

    Every method raises MeasurementError when the process has ended, or with what the engine says is wrong.
    """

    def __init__(self, contestant: Contestant, origin: float, progress: Callable[[str], None]) -> None:
        self._contestant = contestant
        self._origin = origin
        self._progress = progress
        self.files: tuple[Path, ...] = ()
        """Files and folders that the engine read, once it is open."""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        answers, theirs = os.pipe()
        self._spawned = time.perf_counter()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "edgelm.bench.worker", str(theirs)],
                stdin=subprocess.PIPE,
                stdout=self._errors,
                stderr=self._errors,
                pass_fds=(theirs,),
                start_new_session=True,  # Ctrl-C is for this process, which then ends the other
            )
        finally:
            os.close(theirs)
        self._answers = os.fdopen(answers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.kill()

    def open(self, n_prompt: int) -> tuple[Opening, EngineRun]:
        """Open the model and answer a first prompt."""
        fields = asdict(self._contestant) | {"model": str(self._contestant.model), "options": dict(self._contestant.options)}
        answer = self._ask({"contestant": fields, "n_prompt": n_prompt})
        ready, opened, first = (answer[name] - self._origin for name in ("ready", "opened", "first_token"))
        opening = Opening(self._spawned - self._origin, ready, opened, first, n_prompt, peak_rss_bytes=answer["peak_rss"])
        self.files = tuple(map(Path, answer["files"]))
        engine = EngineRun(**(answer["engine"] | {"openings": ()}))
        return opening, with_sizes(engine, self._contestant.model) if answer["is_plain_llama_cpp"] else engine

    def hold(self, n_tokens: int) -> None:
        """Make the context hold so many tokens; not part of any trial."""
        self._ask({"do": "hold", "n_tokens": n_tokens})

    def trial(self, phase: Phase, n_prompt: int, n_generate: int) -> Trial:
        """One timed repetition, from the context that is held."""
        if n_prompt + n_generate < 1 or (phase != "decode" and n_prompt < 1) or (phase != "prefill" and n_generate < 1):
            raise InvalidRequestError(f"a trial of {phase} with {n_prompt} prompt tokens and {n_generate} generated ones measures nothing")
        answer = self._ask({"do": "trial", "phase": phase, "n_prompt": n_prompt, "n_generate": n_generate})
        wanted = 1 if phase == "prefill" else n_generate
        if len(answer["stamps"]) != wanted:
            raise MeasurementError(f"{self._contestant.name} gave {len(answer['stamps'])} of {wanted} tokens")
        counts = {name: answer[name] for name in ("minor_faults", "major_faults", "switches")}
        return Trial(answer["start"] - self._origin, tuple(stamp - self._origin for stamp in answer["stamps"]), **counts)

    def peak_rss_bytes(self) -> int:
        """Memory that the process held at most."""
        return int(self._ask({"do": "peak_rss"})["peak_rss"])

    def close(self) -> None:
        """End the process. Closing twice is allowed."""
        if self._process.stdin and not self._process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):  # it is gone already
                self._process.stdin.close()
        for end in (None, self._process.terminate, self._process.kill):
            if end is not None:
                end()
            try:
                self._process.wait(_PATIENCE_S)
                break
            except subprocess.TimeoutExpired:
                continue
        self._answers.close()
        self._errors.close()

    def kill(self) -> None:
        """End the process at once, in the middle of whatever it does."""
        self._process.kill()
        self.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._process.stdin is None or self._process.stdin.closed:
            raise MeasurementError(f"{self._contestant.name} was closed")
        try:
            self._process.stdin.write((json.dumps(request) + "\n").encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        while line := self._answers.readline():
            answer: dict[str, Any] = json.loads(line)
            if "error" in answer:
                raise MeasurementError(answer["error"])
            if "progress" not in answer:
                return answer
            self._progress(answer["progress"])
        raise self._ended()

    def _ended(self) -> MeasurementError:
        try:
            code = self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            return MeasurementError(f"the process of {self._contestant.name} stopped answering")
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        self._errors.seek(0)
        words = self._errors.read().decode(errors="replace").strip()[-_LAST_WORDS:]
        return MeasurementError(f"the process of {self._contestant.name} ended {how}" + (f"; its last words: {words}" if words else ""))
