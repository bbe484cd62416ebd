"""What a chat completion may ask."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from edgelm.runtime.form import JSON_OBJECT, Form
from edgelm.runtime.server.sampling_fields import SamplingFields, Text
from edgelm.runtime.server.strict import Strict


class TextPart(Strict):
    """A piece of a message. Text is the only kind that these models read."""

    type: Literal["text"] = Field(description="Always text.")
    text: Text = Field(description="The text.")


class CalledFunction(Strict):
    """A function that was called."""

    name: Text = Field(max_length=64, description="Its name.")
    arguments: Text = Field(description="Its arguments, as the text of a JSON object.")


class ToolCall(Strict):
    """A call that the assistant made."""

    id: str = Field(max_length=128, description="By which a tool's message answers it.")
    type: Literal["function"] = Field("function", description="Always function.")
    function: CalledFunction = Field(description="The function.")
    index: int | None = Field(None, description="Of streamed calls; not read.")

    @field_validator("function")
    @classmethod
    def _check_arguments(cls, function: CalledFunction) -> CalledFunction:
        if object_of(function.arguments) is None:
            raise ValueError("arguments must be the text of a JSON object")
        return function

    def for_template(self) -> dict[str, Any]:
        """As chat templates read it: with the arguments as values."""
        return {"type": "function", "function": {"name": self.function.name, "arguments": object_of(self.function.arguments)}}


def object_of(text: str) -> dict[str, Any] | None:
    """The JSON object that a text is, or None."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


class ChatMessage(Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(
        description="Who said it; developer is read as system, which models know."
    )
    content: Text | Annotated[list[TextPart], Field(max_length=1024)] | None = Field(
        None, description="What was said: text, or parts of text; an assistant that called tools may have said nothing."
    )
    name: Text | None = Field(None, max_length=64, description="A name of who said it, for templates that show it.")

    tool_calls: Annotated[list[ToolCall], Field(min_length=1, max_length=128)] | None = Field(
        None, description="Calls that the assistant made."
    )
    tool_call_id: str | None = Field(None, max_length=128, description="Of a tool's message: the call that it answers.")
    refusal: str | None = Field(None, description="Of an assistant's message in OpenAI's answers; not read.")

    @model_validator(mode="after")
    def _check_role(self) -> Self:
        if self.content is None and self.tool_calls is None:
            raise ValueError("content is missing")
        if self.tool_calls is not None and self.role != "assistant":
            raise ValueError("only assistants call tools")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise ValueError("tool_call_id belongs to a tool's message, and to no other")
        return self

    def for_template(self) -> dict[str, Any]:
        """As chat templates read it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())
        message: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": text}
        if self.tool_calls is not None:
            message["tool_calls"] = [call.for_template() for call in self.tool_calls]
        return message | ({"name": self.name} if self.name is not None else {})


class AnyText(Strict):
    """An answer of any form."""

    type: Literal["text"] = Field(description="Any text.")

    def form(self) -> Form | None:
        return None


class JsonObject(Strict):
    """An answer that is a JSON object."""

    type: Literal["json_object"] = Field(description="Some JSON object.")

    def form(self) -> Form | None:
        return JSON_OBJECT


class NamedSchema(Strict):
    """A JSON schema."""

    name: str = Field(max_length=64, description="A name, which changes nothing.")
    description: Text | None = Field(None, description="What it is for, which changes nothing.")
    content: dict[str, Any] = Field(alias="schema", description="The schema.")
    strict: bool | None = Field(None, description="Schemas are always kept to.")


class JsonSchema(Strict):
    """An answer that keeps to a JSON schema."""

    type: Literal["json_schema"] = Field(description="JSON that keeps to a schema.")
    json_schema: NamedSchema = Field(description="The schema.")

    def form(self) -> Form | None:
        return Form.json_schema(self.json_schema.content)


class Expression(Strict):
    """An answer that a regular expression or a grammar describes (edgelm's own)."""

    type: Literal["regex", "lark", "gbnf"] = Field(description="A regular expression, or a grammar of Lark's or of llama.cpp's kind.")
    text: Text = Field(description="The expression or grammar.")

    def form(self) -> Form | None:
        return Form(self.type, self.text)


ResponseFormat = Annotated[AnyText | JsonObject | JsonSchema | Expression, Field(discriminator="type")]


class OfferedFunction(Strict):
    """A function that the model may call."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="Its name.")
    description: Text = Field("", description="What it does, for the model.")
    parameters: dict[str, Any] = Field({"type": "object", "properties": {}}, description="JSON schema of its arguments.")
    strict: bool | None = Field(None, description="Schemas are always kept to.")


class OfferedTool(Strict):
    """A tool that the model may use."""

    type: Literal["function"] = Field(description="Always function.")
    function: OfferedFunction = Field(description="The function.")


class NamedFunction(Strict):
    """The function that must be called."""

    name: str = Field(max_length=64, description="Its name.")


class NamedTool(Strict):
    """The tool that must be used."""

    type: Literal["function"] = Field(description="Always function.")
    function: NamedFunction = Field(description="The function.")


class ChatCompletionRequest(SamplingFields):
    """A conversation that wants an answer."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)] = Field(description="The conversation so far.")
    max_tokens: int | None = Field(None, ge=1, description="Tokens of an answer at most; as many as the context holds if not given.")
    max_completion_tokens: int | None = Field(None, ge=1, description="The newer name of max_tokens.")
    tools: Annotated[list[OfferedTool], Field(max_length=128)] | None = Field(None, description="Functions that the model may call.")
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = Field(
        None, description="auto (the default): text or calls; none: text; required: a call; or a call of the function named."
    )
    parallel_tool_calls: bool = Field(True, description="Whether an answer may be several calls.")
    response_format: ResponseFormat | None = Field(None, description="The form that the answer must have.")
    logprobs: bool = Field(False, description="Tell the log probability of each token of the answer.")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="And those of so many likeliest tokens at each place; needs logprobs.")
