"""Model files from the Hugging Face hub (or a mirror of it) over HTTP, resumed by range requests."""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from edgelm.errors import DownloadError
from edgelm.runtime.catalogue import HubFile
from edgelm.runtime.download import Progress, require_disk, wrong_hash
from edgelm.runtime.settings import Settings

if TYPE_CHECKING:
    import httpx

_CHUNK_BYTES = 1 << 20
_FRUITLESS_ATTEMPTS = 4
_PAUSE_SECONDS = 0.5
_TIMEOUT_SECONDS = 30.0
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class _Announced:
    """What the hub says of a file before it sends it; `etag` names the content."""

    etag: str
    n_bytes: int | None
    sha256: str | None


def fetch_hub_file(source: HubFile, folder: Path, progress: Progress, settings: Settings, sha256: str | None = None) -> Path:
    """Fetch one file into `folder`; returns it there, verified.

    What an earlier call received is kept and not fetched again, as long as the hub still has the same content.
    The expected SHA-256 is `sha256` or, without it, the one that the hub gives for large files (header x-linked-etag).

    Raises:
        DownloadError: the hub cannot be reached, refuses, or serves other bytes than it announced.
    """
    import httpx

    url = f"{settings.hub_endpoint}/{quote(source.repository)}/resolve/{quote(source.revision, safe='')}/{quote(source.path)}"
    headers = {"Accept-Encoding": "identity"}
    if settings.hub_token:
        headers["Authorization"] = f"Bearer {settings.hub_token}"
    try:
        with httpx.Client(follow_redirects=True, timeout=_TIMEOUT_SECONDS, headers=headers) as client:
            announced = _ask(client, url)
            part = _part_file(folder, announced)
            require_disk(folder, (announced.n_bytes or 0) - part.stat().st_size)
            found = _receive_all(client, url, part, announced, progress)
    except (httpx.TransportError, httpx.TooManyRedirects, httpx.InvalidURL) as error:
        raise DownloadError(
            f"fetching {url} failed ({type(error).__name__}: {error}); check the network and HF_ENDPOINT, then pull again: "
            "what was fetched is kept"
        ) from error
    expected = sha256 or announced.sha256
    if expected is not None and found != expected:
        part.unlink()
        raise wrong_hash(url, expected, found)
    return part


def _ask(client: httpx.Client, url: str) -> _Announced:
    """The hub's own headers stand on its redirect, those of the content on the last response."""
    response = client.head(url)
    _check_status(response, url)
    merged: dict[str, str] = {}
    for one in (response, *reversed(response.history)):
        merged.update({key: value for key, value in one.headers.items() if one is response or key.startswith("x-")})
    etag = merged.get("x-linked-etag", merged.get("etag", "unnamed")).removeprefix("W/").strip('"')
    size = merged.get("x-linked-size") or merged.get("content-length", "")
    return _Announced(etag, int(size) if size.isdecimal() else None, etag if _SHA256.fullmatch(etag) else None)


def _part_file(folder: Path, announced: _Announced) -> Path:
    """The file that receives this content; parts of other contents are removed."""
    part = folder / f"{hashlib.sha256(announced.etag.encode()).hexdigest()[:16]}.part"
    for old in folder.glob("*.part"):
        if old != part:
            old.unlink()
    part.touch()
    return part


def _receive_all(client: httpx.Client, url: str, part: Path, announced: _Announced, progress: Progress) -> str:
    """Append to the part until it is whole, going on after dropped connections; returns its SHA-256."""
    import httpx

    fruitless = 0
    while True:
        before = part.stat().st_size
        try:
            return _receive(client, url, part, announced, progress)
        except httpx.TransportError:
            fruitless = 0 if part.stat().st_size > before else fruitless + 1
            if fruitless == _FRUITLESS_ATTEMPTS:
                raise
            time.sleep(_PAUSE_SECONDS * fruitless)


def _receive(client: httpx.Client, url: str, part: Path, announced: _Announced, progress: Progress) -> str:
    digest = hashlib.sha256()
    with part.open("r+b") as sink:
        while data := sink.read(_CHUNK_BYTES):
            digest.update(data)
        done = sink.tell()
        if done == announced.n_bytes:
            return digest.hexdigest()
        with client.stream("GET", url, headers={"Range": f"bytes={done}-"} if done else {}) as response:
            _check_status(response, url)
            if done and response.status_code != 206:  # the server does not resume: begin again
                done, digest = 0, hashlib.sha256()
                sink.seek(0)
                sink.truncate()
            for data in response.iter_raw():  # as it arrives: with a chunk size, a dropped connection would lose what was gathered
                sink.write(data)
                digest.update(data)
                done += len(data)
                progress(done, announced.n_bytes)
    if announced.n_bytes is not None and done != announced.n_bytes:
        part.unlink()
        raise DownloadError(f"{url} sent {done} bytes, but announced {announced.n_bytes}; the bad data was removed, pull it again")
    return digest.hexdigest()


def _check_status(response: httpx.Response, url: str) -> None:
    status = response.status_code
    if status < 400:
        return
    advice = {
        401: "the repository does not exist or is private or gated: accept its licence on the hub and set HF_TOKEN",
        403: "access is refused: accept the licence on the hub and set HF_TOKEN",
        404: "there is no such repository or file: check the spelling of hf:owner/repo/file",
    }.get(status, "the hub is in trouble: try again later")
    raise DownloadError(f"{url} answered {status} {response.reason_phrase}; {advice}")
