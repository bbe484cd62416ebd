"""The page at /, used in a real browser as a person uses it."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from byte_model import says
from cloud_server import CloudServer, cut_off
from numpy.typing import NDArray
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from routed import LOCAL, FixedTrust, Routed
from served import MakeServed, Served

from edgelm.runtime.privacy import Level
from edgelm.runtime.router.strategy import Rule, Strategy
from edgelm.runtime.server.access import Access

_QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync"]
_CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(_CHROMIUM is None, reason="no Chromium here; install it (Debian's package: chromium) to test the page")

OpenPage = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_CHROMIUM, args=_QUIET)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Opens the page of a server; nothing may go wrong in it that it does not tell, and no request may leave the server."""
    contexts, wrong = [], []

    def open_it(served: Served, width: int = 1000, height: int = 700, scheme: Any = "light", may_fail: bool = False) -> Page:
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" and not may_fail else None)
        page.on("request", lambda request: None if request.url.startswith(f"{served.url}/") else wrong.append(request.url))
        page.goto(served.url)
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert wrong == []


def ask(page: Page, text: str) -> None:
    page.get_by_label("Message").fill(text)
    page.get_by_label("Message").press("Enter")


def asked(page: Page, act: Callable[[], Any]) -> Any:
    """What the page sends to the server when something is done."""
    with page.expect_request("**/v1/chat/completions") as request:
        act()
    return request.value.post_data_json


def ended(page: Page) -> None:
    expect(page.get_by_role("button", name="Answer again")).to_be_visible()


def slowly(tokens: Sequence[int]) -> NDArray[np.float32]:
    """Says "abc " for ever, some fifty bytes a second."""
    time.sleep(0.02)
    logits = np.zeros(258, np.float32)
    logits[b"abc "[len(tokens) % 4]] = 20
    return logits


def test_an_answer_with_its_figures(make_served: MakeServed, open_page: OpenPage) -> None:
    page = open_page(make_served(says("Hello **you**")))
    ask(page, "hi")
    ended(page)
    expect(page.locator(".question .text")).to_have_text("hi")
    expect(page.locator(".answer .text strong")).to_have_text("you")
    expect(page.locator(".figures")).to_have_text(re.compile(r"^13 tokens · \d+ tokens/s · first after \d+\.\d\d s$"))
    for part in (".route", ".consent", "#privacy-bar"):  # nothing of a router, where there is none
        expect(page.locator(part)).to_be_hidden()


def test_the_text_comes_as_it_is_said_and_can_be_stopped(make_served: MakeServed, open_page: OpenPage) -> None:
    served = make_served(slowly)
    page = open_page(served)
    ask(page, "go on")
    expect(page.locator(".answer .text")).to_contain_text("abc abc")
    assert "is-running" in (page.locator(".answer").get_attribute("class") or "")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".figures")).to_have_text("stopped")
    said = page.locator(".answer .text").inner_text()
    end = time.monotonic() + 5
    while served.model.scheduler.n_active:
        assert time.monotonic() < end
        time.sleep(0.01)
    messages = asked(page, lambda: ask(page, "and now?"))["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert messages[1]["content"].strip() == said.strip()
    page.keyboard.press("Escape")
    ended(page)


def test_the_conversation_goes_with_each_question(make_served: MakeServed, open_page: OpenPage) -> None:
    page = open_page(make_served(says("yes")))
    ask(page, "one")
    ended(page)
    sent = asked(page, lambda: ask(page, "two"))
    assert [message["content"] for message in sent["messages"]] == ["one", "yes", "two"]
    ended(page)
    again = asked(page, page.get_by_role("button", name="Answer again").click)
    assert again == sent
    ended(page)
    expect(page.locator(".answer")).to_have_count(2)
    page.get_by_role("button", name="New chat").click()
    expect(page.locator("article")).to_have_count(0)
    assert asked(page, lambda: ask(page, "three"))["messages"] == [{"role": "user", "content": "three"}]
    ended(page)


def test_settings_are_sent_and_wrong_ones_are_not(make_served: MakeServed, open_page: OpenPage) -> None:
    page = open_page(make_served(says("abcdefgh")))
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Tokens at most").fill("3")
    page.get_by_label("Top p").fill("7")
    ask(page, "hi")
    expect(page.locator("article")).to_have_count(0)
    expect(page.get_by_label("Top p")).to_be_focused()
    page.get_by_label("Top p").fill("")
    sent = asked(page, page.get_by_role("button", name="Send").click)
    assert sent["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    assert {name: sent[name] for name in ("temperature", "max_tokens")} == {"temperature": 0, "max_tokens": 3}
    assert not {"top_p", "top_k", "min_p", "seed"} & sent.keys()
    ended(page)
    expect(page.locator(".answer .text")).to_have_text("abc")
    expect(page.locator(".figures")).to_contain_text("cut off at the bound of tokens")
    page.reload()
    page.get_by_role("button", name="Settings").click()
    expect(page.get_by_label("System prompt")).to_have_value("Be brief.")


def test_a_model_is_chosen(make_served: MakeServed, open_page: OpenPage) -> None:
    page = open_page(make_served(says("yes"), names=("first", "second")))
    expect(page.get_by_role("combobox").locator("option")).to_have_text(["first (unloaded)", "second (unloaded)"])
    page.get_by_role("combobox").select_option("second")
    assert asked(page, lambda: ask(page, "hi"))["model"] == "second"
    ended(page)
    expect(page.get_by_role("combobox").locator("option")).to_have_text(["first (unloaded)", "second"])
    expect(page.get_by_role("combobox")).to_have_value("second")


def test_what_a_model_writes_does_nothing(make_served: MakeServed, open_page: OpenPage) -> None:
    hostile = (
        "![x](http://example.invalid/a.png) "
        "<img src=http://example.invalid/b.png onerror=alert(1)> [go](javascript:alert(1)) <script>x</script>"
    )
    page = open_page(make_served(says(hostile)))
    ask(page, "hi")
    ended(page)
    answer = page.locator(".answer .text")
    expect(answer).to_contain_text("<script>x</script>")
    assert answer.locator("img, script, a[href^='javascript']").count() == 0


def test_a_key_is_asked_for(make_served: MakeServed, open_page: OpenPage) -> None:
    page = open_page(make_served(says("yes"), Access(keys=("secret",))), may_fail=True)
    expect(page.get_by_role("alert")).to_contain_text("wants an API key")
    expect(page.get_by_label("API key")).to_be_focused()
    page.get_by_label("API key").fill("secret")
    page.get_by_label("API key").press("Tab")
    expect(page.get_by_role("alert")).to_have_count(0)
    ask(page, "hi")
    ended(page)
    expect(page.locator(".answer .text")).to_have_text("yes")


def test_an_error_is_told_and_the_question_can_be_asked_again(make_served: MakeServed, open_page: OpenPage) -> None:
    page = open_page(make_served(says("yes")), may_fail=True)
    ask(page, "long " * 200)
    ended(page)
    expect(page.locator(".answer .error")).to_contain_text("512")
    assert asked(page, lambda: ask(page, "short"))["messages"] == [{"role": "user", "content": "short"}]
    expect(page.locator(".answer .text").last).to_have_text("yes")
    ended(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_on_a_phone(make_served: MakeServed, open_page: OpenPage, scheme: str) -> None:
    page = open_page(make_served(says("```\n" + "wide " * 40 + "\n```\nword" + "d" * 200)), width=320, height=568, scheme=scheme)
    ask(page, "q" * 100)
    ended(page)
    page.get_by_role("button", name="Settings").click()
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    for name in ("Settings", "New chat", "Send"):
        box = page.get_by_role("button", name=name).bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 320
        assert box["y"] + box["height"] <= 568
    assert (luminance(page, "body", "background-color") > 0.5) == (scheme == "light")
    for selector in ("body", ".figures"):
        assert contrast(page, selector) >= 4.5  # WCAG 2.2, 1.4.3


# --- before a router

CLOUD = "from the cloud"
TRUSTS = Strategy(trust=FixedTrust(confidence=0.9, first_look=0.9), thinking="off")
ALWAYS = replace(TRUSTS, rules=[Rule("cloud", "<b>all</b>" + "l" * 100, min_tokens=0)])


@pytest.fixture
def cloud() -> Iterator[CloudServer]:
    with CloudServer() as server:
        yield server


@pytest.fixture
def serve_routed(make_served: MakeServed, tmp_path: Path) -> Callable[..., Served]:
    """A server whose model has a router before it, which may ask a cloud."""

    def serve(cloud: CloudServer, **changes: Any) -> Served:
        return make_served(says(LOCAL), front=lambda model: Routed(tmp_path, cloud.url, local=model, **changes).router)

    return serve


def details(page: Page) -> Locator:
    page.locator(".route summary").last.click()
    return page.locator(".route dl").last


def test_an_answer_of_this_device_says_so(serve_routed: Callable[..., Served], cloud: CloudServer, open_page: OpenPage) -> None:
    page = open_page(serve_routed(cloud, strategy=TRUSTS))
    ask(page, "hi")
    ended(page)
    expect(page.locator(".answer .text")).to_have_text(LOCAL)
    expect(page.locator(".route p")).to_have_text("This device · the answer is right with a probability of 90%")
    expect(page.locator(".route dl")).to_be_hidden()
    expect(details(page)).to_have_text("Confidence90% that this device's answer is rightTokens16 tokens of this device")
    expect(page.locator(".restart")).to_be_empty()
    assert cloud.n_connections == 0


def test_an_answer_of_the_cloud_replaces_what_was_shown(
    serve_routed: Callable[..., Served], cloud: CloudServer, open_page: OpenPage
) -> None:
    page = open_page(serve_routed(cloud, level=Level.REDACT))
    ask(page, "Write to ann@example.org and bob@example.org from 9.9.9.9")
    ended(page)
    expect(page.locator(".answer .text")).to_have_text(CLOUD)
    expect(page.locator(".restart")).to_have_text("This device's text was replaced by the cloud's.")
    expect(page.locator(".restart")).to_have_attribute("aria-live", "polite")
    expect(page.locator(".route p")).to_have_text("The cloud · the answer of this device is right with a probability of only 10%")
    expect(details(page)).to_contain_text("2 e-mail addresses, 1 IP address replaced before the cloud was asked")
    expect(details(page)).to_contain_text("16 tokens of this device, 20 read and 5 written by the cloud")
    expect(details(page)).to_contain_text("Cost0.00003 USD")
    assert [message["content"] for message in asked(page, lambda: ask(page, "and?"))["messages"][1:]] == [CLOUD, "and?"]
    ended(page)


def test_a_cloud_that_fails_is_told(serve_routed: Callable[..., Served], open_page: OpenPage) -> None:
    with CloudServer(cut_off()) as cloud:
        page = open_page(serve_routed(cloud, strategy=ALWAYS))
        ask(page, "hi")
        ended(page)
    expect(page.locator(".answer .text")).to_have_text(LOCAL)
    expect(page.locator(".restart")).to_have_text("The cloud's text was replaced by this device's.")
    expect(page.locator(".place")).to_have_text("This device")
    expect(page.locator(".route")).to_contain_text("cut off")


@pytest.mark.parametrize("says_yes", [True, False])
def test_a_person_is_asked_before_anything_is_sent(
    serve_routed: Callable[..., Served], cloud: CloudServer, open_page: OpenPage, says_yes: bool
) -> None:
    page = open_page(serve_routed(cloud, level=Level.ASK))
    first = asked(page, lambda: ask(page, "A secret?"))
    ended(page)
    question = page.get_by_role("group", name="May the cloud be asked?")
    expect(question).to_contain_text(re.compile(rf"Send \d+ bytes to strong at {cloud.url.removesuffix('/v1')}\? Nothing in it would be"))
    expect(page.locator(".answer .text")).to_have_text(LOCAL)
    assert cloud.n_connections == 0
    if says_yes:
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("System prompt").fill("Be someone else.")  # what was asked about is what is sent
        with page.expect_request("**/v1/chat/completions") as request:
            question.get_by_role("button", name="Yes").click()
        assert request.value.post_data_json == first
        assert request.value.headers["x-edgelm-consent"]
        ended(page)
        assert len(cloud.received) == 1
    else:
        question.get_by_role("button", name="No").click()
    expect(question).to_be_hidden()
    expect(page.locator(".answer .text")).to_have_text(CLOUD if says_yes else LOCAL)
    assert asked(page, lambda: ask(page, "Next"))["messages"][-2]["content"] == (CLOUD if says_yes else LOCAL)
    ended(page)
    assert cloud.n_connections == says_yes


def test_a_question_stands_until_something_else_is_asked_or_forbidden(
    serve_routed: Callable[..., Served], cloud: CloudServer, open_page: OpenPage
) -> None:
    page = open_page(serve_routed(cloud, level=Level.ASK))
    question = page.get_by_role("group", name="May the cloud be asked?")
    for n in (1, 2):
        ask(page, f"Question {n}")
        expect(question).to_have_count(1)
        ended(page)
        expect(page.locator(".answer").last.locator(".consent")).to_be_visible()
    page.get_by_label("Nothing leaves this device").check()
    expect(question).to_have_count(0)
    page.get_by_label("Nothing leaves this device").uncheck()
    expect(question).to_have_count(0)
    assert cloud.n_connections == 0


def test_nothing_leaves_where_a_person_wants_it(serve_routed: Callable[..., Served], cloud: CloudServer, open_page: OpenPage) -> None:
    page = open_page(serve_routed(cloud))
    bar, choice = page.get_by_label("Nothing leaves this device"), page.locator("#privacy")
    expect(bar).to_be_visible()
    page.get_by_role("button", name="Settings").click()
    choice.select_option("Nothing leaves")
    expect(bar).to_be_checked()

    def level() -> str | None:
        with page.expect_request("**/v1/chat/completions") as request:
            ask(page, "hi")
        ended(page)
        return request.value.headers.get("x-edgelm-privacy")

    assert level() == "never"
    expect(page.locator(".route p")).to_have_text("This device · the privacy level is never")
    page.reload()
    expect(bar).to_be_checked()
    assert level() == "never"
    assert cloud.n_connections == 0
    bar.uncheck()
    expect(choice).to_have_value("")
    assert level() is None
    expect(page.locator(".place").last).to_have_text("The cloud")
    assert cloud.n_connections == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_where_an_answer_comes_from_is_readable_on_a_phone(
    serve_routed: Callable[..., Served], cloud: CloudServer, open_page: OpenPage, scheme: str
) -> None:
    page = open_page(serve_routed(cloud, strategy=ALWAYS), width=320, height=568, scheme=scheme)
    ask(page, "hi")
    ended(page)
    expect(page.locator(".place")).to_have_text("The cloud")
    expect(page.locator(".why")).to_contain_text("<b>all</b>lll")
    assert details(page).locator("b").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    assert page.evaluate("(e => e.scrollWidth - e.clientWidth)(document.querySelector('main'))") == 0
    for selector in (".place", ".why", ".route dd", "#privacy-bar"):
        assert contrast(page, selector) >= 4.5  # WCAG 2.2, 1.4.3


def contrast(page: Page, selector: str) -> float:
    """Of text with the page's ground."""
    darker, lighter = sorted((luminance(page, "body", "background-color"), luminance(page, selector, "color")))
    return (lighter + 0.05) / (darker + 0.05)


def luminance(page: Page, selector: str, attribute: str) -> float:
    """Relative luminance by WCAG 2.2."""
    color = page.eval_on_selector(selector, f"e => getComputedStyle(e).getPropertyValue('{attribute}')")
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (int(n) / 255 for n in re.findall(r"\d+", color)[:3])]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_documentation_is_shown_without_asking_anybody_else(make_served: MakeServed, open_page: OpenPage) -> None:
    served = make_served(says("yes"), Access(keys=("secret",)))
    page = open_page(served, may_fail=True)
    page.goto(f"{served.url}/docs")
    expect(page.get_by_text("Answer a conversation", exact=True)).to_be_visible()
