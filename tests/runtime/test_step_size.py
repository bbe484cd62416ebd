"""Steps become as long as wanted, whatever the machine's speed, within bounds."""

from __future__ import annotations

import pytest

from edgelm.runtime.step_size import LEAST, MOST, StepSize


@pytest.mark.parametrize(("tokens_per_second", "wanted"), [(1000.0, 250), (10.0, LEAST), (1e6, MOST)])
def test_it_follows_the_speed(tokens_per_second: float, wanted: int) -> None:
    size = StepSize(0.25)
    assert size.n_tokens == LEAST
    for _ in range(3):
        size.note(size.n_tokens, size.n_tokens / tokens_per_second)
    assert size.n_tokens == wanted


def test_steps_without_prompts_tell_nothing() -> None:
    size = StepSize(0.25)
    size.note(100, 0.1)
    size.note(LEAST - 1, 10.0)
    assert size.n_tokens == 250
