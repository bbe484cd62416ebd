"""Texts that must have a form have it, whatever the model would rather say."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from byte_model import END, MakeLLM

from edgelm.errors import InvalidRequestError
from edgelm.runtime.form import JSON_OBJECT, Form
from edgelm.runtime.llm import LLM
from edgelm.runtime.sampling import SamplingParams

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
ANYTHING = SamplingParams(temperature=1, top_k=0, top_p=1, min_p=0, max_tokens=200)


@pytest.fixture
def babbler(make_llm: MakeLLM) -> LLM:
    """Says anything."""
    llm: LLM = make_llm(lambda _: np.zeros(258, np.float32), n_ctx=512)[0]
    return llm


@pytest.mark.parametrize("seed", range(5))
def test_json_keeps_to_its_schema(babbler: LLM, seed: int) -> None:
    answer = babbler.generate("x", ANYTHING, seed=seed, form=Form.json_schema(PERSON))
    person = json.loads(answer.text)
    assert answer.finish_reason == "stop"
    assert list(person) == ["name", "age"]
    assert len(person["name"]) <= 5
    assert 0 <= person["age"] <= 150


def test_a_likely_word_that_does_not_fit_is_not_said(make_llm: MakeLLM) -> None:
    def insists(_: Any) -> Any:
        logits = np.zeros(258, np.float32)
        logits[[ord("N"), ord("o"), END]] = 30, 29, 28
        return logits

    llm = make_llm(insists)[0]
    assert llm.generate("x", temperature=0).text == "N" * 127
    assert llm.generate("x", temperature=0, form=Form("regex", "[0-9]{3}")).text == "000"


def test_what_fits_keeps_its_proportions(make_llm: MakeLLM) -> None:
    logits = np.full(258, -np.inf, np.float32)
    logits[[ord("a"), ord("b"), ord("x")]] = 2, 1, 3
    llm = make_llm(lambda _: logits)[0]
    form = Form("regex", "[ab]")
    said = [llm.generate("?", ANYTHING, seed=seed, max_tokens=1, form=form).text for seed in range(1000)]
    assert set(said) == {"a", "b"}
    wanted = 1 / (1 + np.exp(-1))
    assert abs(said.count("a") / 1000 - wanted) < 4 * np.sqrt(wanted * (1 - wanted) / 1000)


@pytest.mark.parametrize("form", [Form.json_schema(PERSON), Form("regex", "(yes|no)[!]{1,3}"), Form("lark", 'start: "a" b*\nb: "b" | "c"')])
def test_one_token_and_the_mask_say_the_same(babbler: LLM, form: Form) -> None:
    random = np.random.default_rng(0)
    for _ in range(10):
        asked, masked = babbler.constraints.make(form), babbler.constraints.make(form)
        token = None
        while token != END:
            mask = masked.mask()
            assert [asked.allows(each) for each in range(258)] == (mask == 0).tolist()
            token = int(random.choice(np.flatnonzero(mask == 0)))
            if token != END:
                asked.take(token)
                masked.take(token)


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        (Form("regex", "(yes|no)[!]{1,3}"), "(yes|no)!{1,3}"),
        (Form("lark", 'start: "a" b*\nb: "b" | "c"'), "a[bc]*"),
        (Form("gbnf", 'root ::= "x" ("y" | "z") [0-9]'), "x[yz][0-9]"),
        (Form.json_schema({"enum": ["red", "blue"]}), '"(red|blue)"'),
    ],
)
def test_expressions_and_grammars(babbler: LLM, form: Form, pattern: str) -> None:
    for seed in range(3):
        answer = babbler.generate("x", ANYTHING, seed=seed, form=form)
        assert re.fullmatch(pattern, answer.text)
        assert answer.finish_reason == "stop"


def test_spaces_do_not_go_on_for_ever(make_llm: MakeLLM) -> None:
    def loves_spaces(_: Any) -> Any:
        logits = np.zeros(258, np.float32)
        logits[ord(" ")], logits[ord("}")] = 30, 20
        return logits

    assert json.loads(make_llm(loves_spaces)[0].generate("x", temperature=0, form=JSON_OBJECT).text) == {}


def test_an_unfinished_answer_is_cut_at_its_length(babbler: LLM) -> None:
    answer = babbler.generate("x", ANYTHING, seed=0, max_tokens=3, form=Form.json_schema(PERSON))
    assert answer.finish_reason == "length"


@pytest.mark.parametrize(
    "form",
    [
        Form("json_schema", '{"type": "thing"}'),
        Form("json_schema", "[1"),
        Form("json_schema", '{"$ref": "http://elsewhere/schema"}'),
        Form("json_schema", '{"type": "array", "uniqueItems": true}'),
        Form("json_schema", '{"anyOf": [' * 2000 + "{}" + "]}" * 2000),
        Form("json_schema", " " * 100_000 + "{}"),
        Form("regex", "(unclosed"),
        Form("lark", "start: nothing"),
        Form("gbnf", "root ::= other"),
    ],
    ids=range(9),
)
def test_what_cannot_be_kept_to_is_refused(babbler: LLM, form: Form) -> None:
    with pytest.raises(InvalidRequestError, match=r"cannot be used|cannot be kept to|65,536 at most"):
        babbler.generate("x", ANYTHING, form=form)


def test_an_expression_of_many_repetitions_takes_no_longer(babbler: LLM) -> None:
    assert babbler.generate("x", ANYTHING, seed=0, form=Form("regex", "((((a{1,999}){1,999}){1,999}){1,999})b")).text.startswith("a")


def test_forms_contradict_an_answer_that_never_ends() -> None:
    with pytest.raises(InvalidRequestError, match="ignore_eos"):
        SamplingParams(form=JSON_OBJECT, ignore_eos=True)


def test_a_bias_may_leave_nothing(babbler: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="forbids every token that the form"):
        babbler.generate("x", form=Form("regex", "a"), logit_bias={ord("a"): float("-inf")})


def test_a_schema_must_be_json() -> None:
    with pytest.raises(InvalidRequestError, match="cannot be written"):
        Form.json_schema({"minimum": float("nan")})
