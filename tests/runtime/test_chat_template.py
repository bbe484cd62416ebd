"""Chat templates: texts of well-known formats, what they may call, and how hostile ones end."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from edgelm.errors import InvalidRequestError, TemplateError
from edgelm.quant.gguf_file import GGUFFile
from edgelm.runtime.chat_template import MAX_SOURCE_CHARACTERS, ChatTemplate
from edgelm.runtime.tokenizer import Tokenizer

USER = {"role": "user", "content": "Hi"}
TALK = [
    {"role": "system", "content": "Be brief."},
    USER,
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "1+1?"},
]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather in a town",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]},
    },
}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"town": "Zürich"}'}}


def render(source: str, messages: list[dict[str, Any]] | None = None, **values: Any) -> str:
    return ChatTemplate(source, "<s>", "</s>").render(messages or [USER], **values)


# -- well-known formats ------------------------------------------------------------------------------------------------------------------

CHATML = """{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\\n' + m['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

LLAMA3 = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") if strftime_now is defined else "26 Jul 2024" %}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

GEMMA = """{{ bos_token }}
{%- if messages[0].role == 'system' -%}
    {%- set first = messages[0].content + '\\n\\n' -%}
    {%- set rest = messages[1:] -%}
{%- else -%}
    {%- set first = '' -%}
    {%- set rest = messages -%}
{%- endif -%}
{%- for message in rest -%}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- set role = 'model' if message.role == 'assistant' else message.role -%}
    {{ '<start_of_turn>' + role + '\\n' + (first if loop.first else '') }}
    {%- if message.content is string -%}
        {{ message.content | trim }}
    {%- elif message.content is iterable -%}
        {%- for item in message.content -%}{{ item.text | trim }}{%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""

MISTRAL = """{%- if messages[0].role == "system" %}
    {%- set system_message, loop_messages = messages[0].content, messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set ns = namespace(users=0) %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message.role == "user" %}
        {%- set ns.users = ns.users + 1 %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message.content + "[/INST]" }}
        {%- else %}
            {{- "[INST] " ~ message.content ~ "[/INST]" }}
        {%- endif %}
    {%- elif message.role == "assistant" %}
        {{- " " + message.content + eos_token }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, got " ~ message.role) }}
    {%- endif %}
{%- endfor %}"""

QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if message.role == "user" and not(message.content.startswith('<tool_response>')) %}
        {%- set ns.last = index %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- if '</think>' in content %}
            {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' + content }}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
                {{- '<tool_call>\\n{"name": "' ~ tool_call.name ~ '", "arguments": ' }}
                {%- if tool_call.arguments is string %}{{- tool_call.arguments }}{%- else %}{{- tool_call.arguments | tojson }}{%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or loop.previtem.role != "tool" %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != "tool" %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""

PHI3 = """{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + '<|end|>\n'}}
{%- elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}
{%- elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"""

GRANITE = """{%- for message in messages %}
    {%- if loop.index0 == 0 and message['role'] != 'system' %}
        {{- '<|start_of_role|>system<|end_of_role|>You are Granite.<|end_of_text|>\n' }}
    {%- endif %}
    {{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] + '<|end_of_text|>\n' }}
    {%- if loop.last and add_generation_prompt %}
        {{- '<|start_of_role|>assistant' }}
        {%- if controls %}{{- ' ' + controls | tojson()}}{%- endif %}
        {{- '<|end_of_role|>' }}
    {%- endif %}
{%- endfor %}"""


def test_chatml() -> None:
    assert render(CHATML, TALK) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n"
        "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert render(CHATML, add_generation_prompt=False) == "<|im_start|>user\nHi<|im_end|>\n"


def test_llama3() -> None:
    expected = (
        "<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: 1 May 2025\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert render(LLAMA3, TALK[:2], date_string="1 May 2025") == expected
    assert f"Today Date: {datetime.now():%d %b %Y}\n" in render(LLAMA3)


def test_gemma() -> None:
    assert render(GEMMA, TALK) == (
        "<s><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello!<end_of_turn>\n"
        "<start_of_turn>user\n1+1?<end_of_turn>\n<start_of_turn>model\n"
    )
    with pytest.raises(TemplateError, match="refuses these messages: Conversation roles must alternate"):
        render(GEMMA, [USER, USER])


def test_mistral() -> None:
    assert render(MISTRAL, TALK) == "<s>[INST] Hi[/INST] Hello!</s>[INST] Be brief.\n\n1+1?[/INST]"
    with pytest.raises(TemplateError, match="got tool"):
        render(MISTRAL, [USER, {"role": "tool", "content": "x"}])


def test_qwen_with_tools() -> None:
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "sunny"},
        {"role": "tool", "content": "warm"},
        {"role": "assistant", "content": "<think>so</think>\n\nNice."},
        USER,
    ]
    assert render(QWEN, messages, tools=[WEATHER], enable_thinking=False) == (
        "<|im_start|>system\n# Tools\n\n<tools>\n" + json.dumps(WEATHER) + "\n</tools><|im_end|>\n"
        "<|im_start|>user\nWeather?<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "weather", "arguments": {"town": "Zürich"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nsunny\n</tool_response>\n<tool_response>\nwarm\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\nNice.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


def test_phi3() -> None:
    assert render(PHI3, TALK) == (
        "<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello!<|end|>\n<|user|>\n1+1?<|end|>\n<|assistant|>\n"
    )
    assert render(PHI3, add_generation_prompt=False) == "<|user|>\nHi<|end|>\n</s>"


def test_granite() -> None:
    assert render(GRANITE, controls={"length": "short"}) == (
        "<|start_of_role|>system<|end_of_role|>You are Granite.<|end_of_text|>\n<|start_of_role|>user<|end_of_role|>Hi<|end_of_text|>\n"
        '<|start_of_role|>assistant {"length": "short"}<|end_of_role|>'
    )


def test_smollm2s_own(smollm2_path: Path) -> None:
    with GGUFFile(smollm2_path) as file:
        template = ChatTemplate.from_metadata(file.metadata)
        tokenizer = Tokenizer.from_metadata(file.metadata)
    expected = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert template.render([USER]) == expected
    tokens = tokenizer.encode(expected)
    assert tokens[0] == tokenizer.bos_id
    assert tokens.count(tokenizer.eos_id or -1) == 2
    assert tokenizer.decode(tokens) == expected


# -- what templates call -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ {'b': 1, 'a': ['é', none, true]}|tojson }}", '{"b": 1, "a": ["é", null, true]}'),
        ("{{ {'b': 1, 'a': '<'}|tojson(indent=2, sort_keys=true) }}", '{\n  "a": "<",\n  "b": 1\n}'),
        ("{{ [1, 2]|tojson(separators=(',', ':')) }}", "[1,2]"),
        ("{% generation %}{{ 'x' }}{% endgeneration %}y", "xy"),
        ("{% for i in range(9) %}{% if i == 2 %}{% continue %}{% elif i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}", "013"),
        ("{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}{{ v }}{{ loop.index }}{{ loop.last }}{% endfor %}", "a11Falseb22True"),
        ("{% for x in [1, 2, 3] if x != 2 %}{{ x }}/{{ loop.length }} {% else %}none{% endfor %}", "1/2 3/2 "),
        ("{% for x in nothing %}x{% else %}none{% endfor %}", "none"),
        ("{% set ns = namespace(n=0) %}{% for c in 'abc' %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "3"),
        (
            "{% macro f(a, b='-') %}[{{ a }}{{ b }}{{ caller() if caller }}]{% endmacro %}{{ f(1) }}{% call f(2) %}c{% endcall %}",
            "[1-][2-c]",
        ),
        ("{{ messages|selectattr('role', 'equalto', 'user')|map(attribute='content')|join(',') }}", "Hi"),
        ("{{ [3, 1, 2]|sort|join('-') }}{{ [1, 2]|sum }}{{ ['a']|first }}{{ [1, 2]|last }}", "1-2-33a2"),
        ("{{ '%s:%03d' % ('a', 7) }}{{ '{}-{x:>3}'.format(1, x='b') }}{{ '%.1f'|format(2.25) }}", "a:0071-  b2.2"),
        ("{{ 'a b'.split(' ')[1] }}{{ 'xay'.replace('a', '--') }}{{ 'a'.join(['1', '2']) }}{{ 'ab'[::-1] }}", "bx--y1a2ba"),
        ("{{ 'a\nb'|indent(2) }}{{ 'a'|center(3) }}|{{ 'aXa'|replace('a', 'b', 1) }}", "a\n  b a |bXa"),
        ("{{ '<a>'|e }}{{ '<a>'|safe }}{{ 2.567|round(1) }}{{ -3|abs }}{{ 2 ** 10 }}{{ 7 // 2 }}", "&lt;a&gt;<a>2.6310243"),
        ("{{ 'x' ~ 1 ~ none }}{{ missing }}{{ missing|default('d') }}{{ messages[0].nothing is defined }}", "x1NonedFalse"),
        ("{{ {'update': 'mine'}.update }}{{ {'a': {'b': 1}}.a.b }}{{ {'a': 1}.get('b', 2) }}{{ (1, 2)[0] }}", "mine121"),
        ("{{ [{'k': 1, 'v': 'a'}, {'k': 1, 'v': 'b'}]|groupby('k')|map('first')|list }}", "[1]"),
        ("{% for g in [{'k': 1}, {'k': 1}]|groupby('k') %}{{ g.grouper }}{{ g.list|length }}{% endfor %}", "12"),
        ("{% set x %}a{{ 1 }}{% endset %}{{ x|upper }}{% filter lower %}ABC{% endfilter %}", "A1abc"),
        ("{% set a, b = 1, 2 %}{{ a }}{{ b }}{{ 'yes' if 1 < 2 <= 2 and 'a' in 'abc' else 'no' }}", "12yes"),
        ("a\n{% if true %}\nb\n    {% endif %}\nc", "a\nb\nc"),
        ("{{ documents[0].text }}{{ pad }}{{ bos_token }}{{ eos_token }}", "doc0<s></s>"),
        ("{{ tools is none }}{{ add_generation_prompt }}{{ raise_exception is defined }}{{ strftime_now('%%') }}", "TrueTrueTrue%"),
    ],
)
def test_language(source: str, expected: str) -> None:
    assert render(source, documents=[{"text": "doc"}], pad=0) == expected


def test_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    assert render("{{ messages[0].content }}", [{"role": "user", "content": parts}]) == "Hello"


def test_missing_content_is_empty() -> None:
    assert render("[{{ messages[0].content }}]", [{"role": "assistant", "content": None}]) == "[]"
    assert render("[{{ messages[0].content }}]", [{"role": "assistant", "tool_calls": [CALL]}]) == "[]"


@pytest.mark.parametrize(
    ("arguments", "expected"), [('{"a": 1}', '{"a": 1}'), ("no json", '"no json"'), ("[1]", '"[1]"'), ({"a": 1}, '{"a": 1}')]
)
def test_arguments_of_tool_calls(arguments: object, expected: str) -> None:
    message = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    assert render("{{ messages[0].tool_calls[0].function.arguments|tojson }}", [message]) == expected
    assert message["tool_calls"][0]["function"]["arguments"] == arguments


def test_messages_are_left_as_they_are() -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [CALL], "name": "n"}
    before = json.dumps(message)
    assert render("{{ messages[0].name }}", [message]) == "n"
    assert json.dumps(message) == before


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("Hi", "messages must be a list of objects, not str"),
        ({"role": "user"}, "messages must be a list of objects, not dict"),
        (["Hi"], r"messages\[0\] must be an object, not str"),
        ([{"content": "Hi"}], r"messages\[0\] must have a role"),
        ([{"role": 1, "content": "Hi"}], r"messages\[0\] must have a role"),
        ([USER, {"role": "user"}], r"messages\[1\] must have a content"),
        ([{"role": "user", "content": 7}], r"messages\[0\].content must be a list of objects, not int"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], r"messages\[0\].content holds a part of type 'image_url'"),
        ([{"role": "user", "content": ["x"]}], r"content\[0\] must be an object"),
        ([{"role": "user", "content": "", "tool_calls": "f"}], "tool_calls must be a list"),
        ([{"role": "user", "content": "", "extra": object()}], "holds a value of type object"),
        ([{"role": "user", "content": "", "extra": {1: 2}}], "a key that is no text"),
    ],
)
def test_messages_of_another_form(messages: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        ChatTemplate("x").render(messages)


def test_values_that_hold_themselves() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(InvalidRequestError, match="nested more than 100 deep"):
        render("x", documents=loop)


@pytest.mark.parametrize("tools", ["f", [1]])
def test_tools_of_another_form(tools: Any) -> None:
    with pytest.raises(InvalidRequestError, match="tools"):
        render("x", tools=tools)


# -- templates that are missing, wrong or hostile ----------------------------------------------------------------------------------------


def metadata(template: object) -> Mapping[str, Any]:
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["a", "<begin>", "<end>"],
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": template,
    }


def test_special_tokens_come_from_the_model() -> None:
    assert ChatTemplate.from_metadata(metadata("{{ bos_token }}{{ eos_token }}")).render([USER]) == "<begin><end>"


@pytest.mark.parametrize("template", [None, 5])
def test_model_without_a_template(template: object) -> None:
    with pytest.raises(TemplateError, match="this model has no chat template; use generate, or pass a template"):
        ChatTemplate.from_metadata(metadata(template))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a\n\n{% if %}", "malformed, line 3: Expected an expression"),
        ("{% for x in y %}", "malformed, line 1: Unexpected end of template"),
        ("{{ 'x }}", "malformed, line 1"),
        ("\n{{ x|nosuch }}", "line 2: No filter named 'nosuch'"),
        ("{% nosuch %}", "unknown tag 'nosuch'"),
        ("{% include 'x' %}", "include is not supported"),
        ("{% import 'x' as y %}", "import is not supported"),
        ("{% extends 'x' %}", "extends is not supported"),
        ("{% block b %}{% endblock %}", "block is not supported"),
        ("{% autoescape true %}{% endautoescape %}", "autoescape is not supported"),
        ("{% for x in [] recursive %}{{ loop(x) }}{% endfor %}", "recursive loops are not supported"),
        ("x" * (MAX_SOURCE_CHARACTERS + 1), "at most 65536"),
        ("{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}", "nested too deeply"),
        ("{% for a in [1] %}" * 40 + "{% endfor %}" * 40, "nested too deeply"),
        ("{{ a" + ".a" * 20_000 + " }}", "nested too deeply"),
        ("{{ 1" + "+1" * 20_000 + " }}", "nested too deeply"),
        ("{% if a %}" + "{% elif a %}" * 4_000 + "{% endif %}", "nested too deeply"),
        ("{{ " + "9" * 10_000 + " }}", "a number that is none"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_malformed(source: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        ChatTemplate(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ 1 + 'a' }}", "at line 1: unsupported operand"),
        ("\n\n{{ 1 / 0 }}", "at line 3: division by zero"),
        ("{{ missing.attribute }}", "'missing' is undefined"),
        ("{{ messages[0].content() }}", "not callable"),
        ("{{ none.x.y }}", "has no attribute 'x'"),
        ("{% for x in 5 %}{% endfor %}", "not iterable"),
        ("{{ 5[1:] }}", "not subscriptable"),
        ("{{ missing|tojson }}", "not JSON serializable"),
        ("{{ lipsum() }}", "'lipsum' is undefined"),
        ("{{ 'a'.format }}{{ '{1}'.format(0) }}", "out of range"),
        ("{{ [[1]]|sum(start=[]) }}", "starts from a number"),
        ("{{ {}|first + 1 }}", "No first item"),
    ],
)
def test_templates_that_fail(source: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__ }}",
        "{{ ''['__class__'] }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'a': 1}) }}",
        "{{ messages[0].pop('role') }}",
        "{{ raise_exception.__globals__ }}",
        "{{ namespace.__init__ }}",
        "{{ range.__class__ }}",
        "{{ (1).to_bytes(9, 'big') }}",
        "{{ 'a'.encode() }}",
        "{{ 'a'.translate({97: 'b'}) }}",
        "{{ '\t'.expandtabs(9) }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ '{a.__class__}'.format(a=1) }}",
        "{{ '{}'.format_map({}) }}",
        "{% macro m() %}{% endmacro %}{{ m._func }}",
        "{{ loop.__class__ }}{% for x in [1] %}{{ loop._iterable }}{% endfor %}",
        "{{ cycler }}{{ cycler.x }}",
        "{{ self.__class__ }}",
        "{{ messages|map(attribute='__class__')|list }}",
        "{{ messages|selectattr('__class__')|list }}",
        "{{ messages|sort(attribute='__class__') }}",
    ],
)
def test_reaching_for_attributes(source: str) -> None:
    with pytest.raises(TemplateError, match=r"out of reach|undefined|has no attribute"):
        render(source)


BIG = "{% set s = 'x' * 1000000 %}"
HOSTILE = {
    "huge range": "{% for i in range(10**12) %}x{% endfor %}",
    "nested ranges": "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in 'ab' %}{% endfor %}{% endfor %}{% endfor %}",
    "output in nested loops": "{% for i in range(1000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}",
    "long body": "{% for i in range(100000) %}" + "{{ 'a' }}b" * 500 + "{% endfor %}",
    "repetition": "{{ 'a' * 10**9 }}",
    "repetition from the left": "{% set a = 10**9 * 'a' %}",
    "repeated list": "{% set a = [1] * 10**9 %}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "squares": "{% set ns = namespace(n=10) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "endless macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "branching macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}",
    "growing macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% else %}xxxx{% endif %}{% endmacro %}{{ f(30)|length }}",
    "nested callers": "{% macro m() %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + ("{% call m() %}" * 18 + "x" * 99 + "{% endcall %}" * 18),
    "doubling by tilde": "{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "doubling by plus": "{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "doubling by block": "{% set ns = namespace(s='ab') %}"
    "{% for i in range(99) %}{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endfor %}",
    "doubling by format": "{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = '%s%s' % (ns.s, ns.s) %}{% endfor %}",
    "doubling lists": "{% set ns = namespace(s=[1]) %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "shared lists": "{% set ns = namespace(s=[1]) %}{% for i in range(99) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
    "shared tuples": "{% set ns = namespace(s=(1, 2)) %}{% for i in range(99) %}{% set ns.s = (ns.s, ns.s) %}{% endfor %}{{ ns.s|length }}",
    "shared dicts": "{% set ns = namespace(s={}) %}{% for i in range(99) %}{% set ns.s = {'a': ns.s, 'b': ns.s} %}{% endfor %}",
    "shared dicts by call": "{% set ns = namespace(s={}) %}{% for i in range(99) %}{% set ns.s = dict(a=ns.s, b=ns.s) %}{% endfor %}",
    "percent width": "{{ '%999999999d' % 1 }}",
    "percent precision": "{{ '%.999999999f' % 1 }}",
    "percent star": "{{ '%*d' % (999999999, 1) }}",
    "percent filter": "{{ '%999999999d'|format(1) }}",
    "percent by name": BIG + "{{ ('%(a)s' * 10000) % {'a': s} }}",
    "format width": "{{ '{:999999999}'.format(1) }}",
    "format nested width": "{{ '{:{}}'.format(1, 999999999) }}",
    "format repeated": BIG + "{{ ('{0}' * 10000).format(s) }}",
    "center": "{{ 'a'|center(10**9) }}",
    "center method": "{{ 'a'.center(10**9) }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "zfill": "{{ 'a'.zfill(10**9) }}",
    "indent": "{{ ('a\n' * 100000)|indent(100000) }}",
    "indent by text": BIG + "{{ ('a\n' * 100000)|indent(s) }}",
    "join": BIG + "{{ range(100000)|join(s) }}",
    "join method": BIG + "{{ s.join(range(100000)|map('string')) }}",
    "replace": BIG + "{{ s|replace('x', s) }}",
    "replace method": BIG + "{{ s.replace('', s) }}",
    "replace growing": "{% set ns = namespace(s='aa') %}{% for i in range(99) %}{% set ns.s = ns.s|replace('a', 'aa') %}{% endfor %}",
    "tojson": "{{ [[[[1]]]]|tojson(indent=10**9) }}",
    "tojson growing": BIG + "{% for i in range(99) %}{{ [s, s]|tojson }}{% endfor %}",
    "round": "{{ 1|round(10**9, 'floor') }}",
    "default in map": BIG + "{{ range(100000)|map(attribute='x', default=s)|sort }}",
    "list of big texts": BIG + "{% set l = [" + "s," * 3000 + "] %}",
    "many big texts": "".join(f"{{% set a{place} = 'x' * 3000000 %}}" for place in range(1500)),
    "many slices": BIG + "".join(f"{{% set a{place} = s[{place}:] %}}" for place in range(1500)),
    "many comparisons": "{% set s = 'ab' * 1500000 %}{% set t = 'ab' * 700000 ~ 'c' %}" + "{% if t in s %}{% endif %}" * 2000,
    "strftime": "{{ strftime_now('%999999999d') }}",
    "long strftime": "{{ strftime_now('%c' * 1000) }}",
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE)
def test_hostile_templates_are_stopped(source: str) -> None:
    threads = threading.active_count()
    template = ChatTemplate(source, time_limit_s=1.0)
    for _ in range(2):
        with pytest.raises(TemplateError, match="was stopped"):
            template.render([USER])
    assert threading.active_count() == threads


def test_a_template_works_again_after_it_was_stopped() -> None:
    template = ChatTemplate("{% if messages|length > 1 %}{{ 'a' * 10**9 }}{% endif %}ok")
    with pytest.raises(TemplateError, match="was stopped"):
        template.render([USER, USER])
    assert template.render([USER]) == "ok"


@pytest.mark.parametrize(
    "source",
    [
        HOSTILE["branching macro"],
        "{% macro f() %}" + "{% if true %}{% endif %}" * 1000 + "{% endmacro %}{% for i in range(99999) %}{{ f() }}{% endfor %}",
        "{% for i in range(99999) %}" + "{% if true %}{% endif %}" * 1000 + "{% endfor %}",
    ],
)
def test_steps_are_counted(source: str) -> None:
    with pytest.raises(TemplateError, match="too many steps"):
        ChatTemplate(source, time_limit_s=60).render([USER])


def test_clock() -> None:
    template = ChatTemplate("{% for i in range(10) %}{{ i }}{% endfor %}", time_limit_s=0.0)
    with pytest.raises(TemplateError, match="longer than 0 s"):
        template.render([USER])


def test_long_conversations_are_within_the_limits() -> None:
    messages = [{"role": "user" if place % 2 == 0 else "assistant", "content": "word " * 400} for place in range(801)]
    tools = [WEATHER] * 100
    text = render(QWEN, messages, tools=tools)
    assert text.count("<|im_start|>") == 803
    collecting = (
        "{% set ns = namespace(l=[], s='') %}{% for m in messages %}{% set ns.l = ns.l + [m] %}"
        "{% set before = messages[:loop.index0]|selectattr('role', 'equalto', 'user')|list %}{% endfor %}{{ ns.l|length }}"
    )
    assert render(collecting, messages) == "801"


def test_one_template_in_several_threads() -> None:
    template = ChatTemplate(CHATML)
    texts: list[str] = []
    messages = [[{"role": "user", "content": str(place)}] * 50 for place in range(8)]
    workers = [threading.Thread(target=lambda batch: texts.append(template.render(batch)), args=(batch,)) for batch in messages]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(texts) == sorted(template.render(batch) for batch in messages)
