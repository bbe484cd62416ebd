"""The budget is never overspent: not by many requests at once, and not by processes that are killed."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from cloud_server import CloudServer, answers, hangs, wait_for
from routed import LOCAL, Routed, asked

from edgelm.errors import EgressRefusedError
from edgelm.runtime.chat_model import Asker
from edgelm.runtime.router.amounts import BudgetLimits
from edgelm.runtime.router.egress import Limits
from edgelm.runtime.router.ledger import Account, Purpose
from edgelm.runtime.router.policy import Permit

TESTS = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("limits", "n_fit"),
    [(BudgetLimits(requests_per_day=7), 7), (BudgetLimits(tokens_per_month=207 * 6), None), (BudgetLimits(money_per_day=0), 0)],
)
def test_fifty_at_once_keep_to_it(limits: BudgetLimits, n_fit: int | None, tmp_path: Path) -> None:
    with CloudServer(answers("from the cloud", gap_s=0.05)) as cloud:
        routed = Routed(tmp_path, cloud.url, limits=limits, timeout_s=20, egress=Limits(5.0, 10.0))
        heard = routed.ask_all(["What is it?"] * 50, Asker(reading="whole"))
    n_asked = sum(each.text == "from the cloud" for each in heard)
    assert n_asked == len(cloud.received)
    spent = routed.budget.spent()
    if n_fit is not None:
        assert n_asked == n_fit
    else:  # what an answer did not take is free for the next one
        assert 6 <= n_asked < 50
        assert spent.month.settled.tokens + spent.month.reserved.tokens <= 207 * 6
    others = [each for each in heard if each.text != "from the cloud"]
    assert {each.text for each in others} <= {LOCAL}
    assert all("per_" in (each.told.fault or "") for each in others)


def test_a_process_that_is_killed_in_the_middle_has_spent_its_worst_case(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from routed import Routed; Routed(Path(sys.argv[1]), sys.argv[2], timeout_s=60).ask()"
    limits = BudgetLimits(requests_per_day=3)
    with CloudServer(hangs(1)) as cloud:
        for n in range(1, 4):
            process = subprocess.Popen(
                [sys.executable, "-c", code, str(tmp_path), cloud.url], env={"PYTHONPATH": f"{TESTS}:{TESTS.parent}", "HOME": str(tmp_path)}
            )
            wait_for(lambda n=n: len(cloud.received) == n, 30)  # type: ignore[misc]
            process.send_signal(signal.SIGKILL)
            process.wait()
        routed = Routed(tmp_path, cloud.url, limits=limits)
        assert routed.budget.spent().day.reserved.requests == 3
        heard = routed.ask()
        assert len(cloud.received) == 3
    assert heard.text == LOCAL
    assert "requests_per_day is 3" in (heard.told.fault or "")
    assert [record.kind for record in routed.records] == ["sent"] * 3 + ["refused"]


def test_what_was_not_sent_is_not_counted(tmp_path: Path) -> None:
    """Not where the door refuses, and not where whoever asked leaves before anything was sent."""
    with CloudServer() as cloud:
        routed = Routed(tmp_path, cloud.url)
        request = asked("?")
        body = routed.cloud.body(request)
        permit = routed.policy.permit((), routed.cloud.endpoint.address.url, body, redacted=False, has_consent=False)

        async def ask(given: Permit, leave: bool) -> None:
            events = routed.cloud.answer(given, request, body, Purpose("r", "test"), Account())
            task = asyncio.ensure_future(anext(events))
            if leave:
                await asyncio.sleep(0)
                task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await routed.cloud.close()

        with pytest.raises(EgressRefusedError):
            asyncio.run(ask(replace(permit, seal=b""), leave=False))
        asyncio.run(ask(permit, leave=True))
        assert cloud.n_connections == 0
    wait_for(lambda: routed.budget.spent().day.reserved.requests == 0)
    assert routed.budget.spent().day.settled.requests == 0
