"""Prompts: long enough, each another one, the same ones for the same seed."""

from __future__ import annotations

from edgelm.bench.load.prompts import Prompts


def test_each_is_another_text_of_that_many_words() -> None:
    prompts = Prompts(40)
    texts = [prompts.next() for _ in range(50)]
    assert len(set(texts)) == 50
    assert {len(text.split()) for text in texts} == {40}
    assert len({" ".join(text.split()[:4]) for text in texts}) == 50  # so that no prefix cache helps


def test_the_seed_decides() -> None:
    assert [Prompts(5, 1).next(), Prompts(5, 1).next()] == [Prompts(5, 1).next()] * 2
    assert Prompts(5, 1).next() != Prompts(5, 2).next()


def test_the_same_prompt_if_asked_for() -> None:
    prompts = Prompts(8, same=True)
    assert prompts.next() == prompts.next()
