"""The router for programs that are not asynchronous, with a real model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cloud_server import CloudServer, hangs, wait_for

from edgelm import Level, RoutedLLM
from edgelm.errors import ClosedError
from edgelm.runtime.privacy import ConsentRequest

Open = Callable[..., RoutedLLM]
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def open_routed(smollm2_path: Path, tmp_path: Path) -> Iterator[Open]:
    """Opens one that asks the cloud first, at this level."""
    opened: list[RoutedLLM] = []

    def make(cloud: CloudServer, level: str = "allow", ask_person: Callable[[ConsentRequest], bool] | None = None) -> RoutedLLM:
        files = '[budget]\nfile = "budget.sqlite"\n[log]\nfile = "egress.jsonl"\n'
        rule = '[[rules]]\nname = "all"\nanswer = "cloud"\nmin_tokens = 0\n'
        config = tmp_path / "route.toml"
        config.write_text(f'level = "{level}"\n[cloud]\nurl = "{cloud.url}"\nmodel = "strong"\n{files}{rule}')
        opened.append(RoutedLLM(smollm2_path, config, ask_person, n_ctx=256))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def test_it_answers_here_or_there_as_the_request_allows(open_routed: Open) -> None:
    with CloudServer() as cloud:
        routed = open_routed(cloud)
        here = routed.chat(QUESTION, temperature=0, max_tokens=8, level=Level.NEVER)
        assert cloud.n_connections == 0
        there = routed.chat(QUESTION, temperature=0, max_tokens=8)
    assert (here.decision.route, here.finish_reason in ("stop", "length"), bool(here.text)) == ("local", True, True)
    assert (there.decision.route, there.text, there.finish_reason) == ("cloud", "from the cloud", "stop")


def test_a_person_is_asked_in_a_thread(open_routed: Open) -> None:
    asked: list[ConsentRequest] = []

    def ask(question: ConsentRequest) -> bool:
        asked.append(question)
        return len(asked) > 1

    with CloudServer() as cloud:
        routed = open_routed(cloud, "ask", ask)
        routes = [routed.chat(QUESTION, max_tokens=4).decision.route for _ in range(2)]
    assert routes == ["local", "cloud"]


def test_closing_lets_nobody_wait_for_ever(open_routed: Open) -> None:
    ended: list[BaseException] = []

    def wait(routed: RoutedLLM) -> None:
        try:
            routed.chat(QUESTION, max_tokens=4)
        except ClosedError as error:
            ended.append(error)

    with CloudServer(hangs()) as cloud:
        routed = open_routed(cloud)
        waiting = threading.Thread(target=wait, args=(routed,))
        waiting.start()
        wait_for(lambda: len(cloud.received) == 1)
        routed.close()
        routed.close()
        waiting.join(5)
    assert len(ended) == 1
    with pytest.raises(ClosedError):
        routed.chat(QUESTION)
