"""Records that a command is given: by their file, or by their id in the history."""

from __future__ import annotations

import re
from pathlib import Path

from edgelm.bench import history
from edgelm.bench.record import Record
from edgelm.bench.record_file import read_record

_ID = re.compile(r"[0-9a-f]{1,12}")


def find_record(text: str) -> Record:
    """The record in the file of that name; without such a file, the record of the history whose id begins so.

    Raises:
        RecordError: there is neither, or it cannot be read.
    """
    path = Path(text)
    if not path.exists() and _ID.fullmatch(text):
        return history.load(text)
    return read_record(path)
