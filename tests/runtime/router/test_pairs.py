"""Reading of pairs: what is meant is read, all else is refused with its line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from edgelm.errors import InvalidRequestError
from edgelm.runtime.router.pairs import Examples, digest, read_pairs, without

GOOD = {"task": "a", "prompt": "Why?", "weak": 0, "strong": 1}


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_prompts_conversations_and_shares_are_read(tmp_path: Path) -> None:
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Why?"}]}]
    rows = [GOOD, {"task": "b", "messages": talk, "weak": 0.25, "strong": True}]
    pairs = read_pairs(written(tmp_path / "pairs.jsonl", rows[0], "", rows[1]))
    assert pairs[0].messages == ({"role": "user", "content": "Why?"},)
    assert pairs[1].messages == tuple(talk)
    assert [(pair.weak, pair.strong) for pair in pairs] == [(0, 1), (0.25, 1)]
    packed = tmp_path / "pairs.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "pairs.jsonl").read_bytes()))
    assert read_pairs(packed) == pairs


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{", "Expecting"),
        ("[1]", "no JSON object"),
        ("[" * 100_000, "nested too deeply"),
        ({**GOOD, "subject": "x"}, "unknown key 'subject'"),
        ({**GOOD, "messages": [{"role": "user", "content": "x"}]}, "either"),
        ({"task": "a", "weak": 0, "strong": 1}, "either"),
        ({**GOOD, "task": ""}, "task"),
        ({**GOOD, "task": 7}, "task"),
        ({**GOOD, "prompt": 7}, "prompt"),
        ({**GOOD, "prompt": None}, "prompt"),
        ({**GOOD, "weak": 1.5}, "weak.*1.5"),
        ({**GOOD, "weak": "1"}, "weak"),
        ({**GOOD, "strong": None}, "strong"),
        ('{"task": "a", "prompt": "x", "weak": NaN, "strong": 1}', "weak.*nan"),
        ({"task": "a", "messages": [], "weak": 0, "strong": 1}, "messages"),
        ({"task": "a", "messages": [{"role": "assistant", "content": "x"}], "weak": 0, "strong": 1}, "role"),
    ],
)
def test_what_is_no_pair_is_refused_with_its_line(tmp_path: Path, row: Any, says: str) -> None:
    path = written(tmp_path / "pairs.jsonl", GOOD, row)
    with pytest.raises(InvalidRequestError, match=f"pairs.jsonl, line 2: .*{says}"):
        read_pairs(path)


@pytest.mark.parametrize("name", ["pairs.jsonl.gz", "none.jsonl"])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, name: str) -> None:
    written(tmp_path / "pairs.jsonl.gz", GOOD)  # not compressed
    with pytest.raises(InvalidRequestError, match="cannot be read"):
        read_pairs(tmp_path / name)


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(GOOD).encode())[:-9])
    with pytest.raises(InvalidRequestError, match="cannot be read"):
        read_pairs(path)


def test_a_file_without_pairs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="no pairs"):
        read_pairs(written(tmp_path / "pairs.jsonl", "", ""))


def test_tasks_are_left_out_by_name(tmp_path: Path) -> None:
    pairs = read_pairs(written(tmp_path / "pairs.jsonl", GOOD, {**GOOD, "task": "b"}))
    assert without(pairs, ["a"]) == pairs[1:]
    with pytest.raises(InvalidRequestError, match="'c'"):
        without(pairs, ["a", "c"])


def test_a_digest_tells_pairs_apart(tmp_path: Path) -> None:
    pairs = read_pairs(written(tmp_path / "pairs.jsonl", GOOD, {**GOOD, "weak": 1}))
    assert digest(pairs) == digest(list(pairs))
    assert len({digest(pairs), digest(pairs[:1]), digest(pairs[1:]), digest(pairs[::-1])}) == 4


def test_a_part_of_the_examples(tmp_path: Path) -> None:
    examples = Examples.of(read_pairs(written(tmp_path / "pairs.jsonl", GOOD, {**GOOD, "task": "b", "weak": 0.5})))
    part = examples.part([1])
    assert (part.tasks, part.weak.tolist(), len(part)) == (("b",), [0.5], 1)
