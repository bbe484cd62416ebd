"""The budget is never overspent: not by many requests at once, and not by processes that are killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cloud_server import CloudServer, answers, hangs, wait_for
from routed import LOCAL, Routed

from edgelm.runtime.chat_model import Asker
from edgelm.runtime.router.amounts import BudgetLimits
from edgelm.runtime.router.egress import Limits

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
