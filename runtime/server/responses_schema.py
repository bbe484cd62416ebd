"""What OpenAI's responses may ask."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from edgelm.runtime.form import Form
from edgelm.runtime.server.chat_schema import AnyText, JsonObject, object_of
from edgelm.runtime.server.sampling_fields import Text
from edgelm.runtime.server.strict import Strict


class Part(Strict):
    """A piece of text of a message."""

    type: Literal["input_text", "output_text"] = Field(description="Whose text it is.")
    text: Text = Field(description="The text.")
    annotations: list[Any] | None = Field(None, description="Of an earlier answer; not read.")
    logprobs: list[Any] | None = Field(None, description="Of an earlier answer; not read.")


class InputMessage(Strict):
    """One message of a conversation."""

    type: Literal["message"] = Field("message", description="Always message.")
    role: Literal["system", "developer", "user", "assistant"] = Field(description="Who said it.")
    content: Text | Annotated[list[Part], Field(max_length=1024)] = Field(description="What was said.")
    id: str | None = Field(None, max_length=128, description="Of an earlier answer; not read.")
    status: str | None = Field(None, max_length=32, description="Of an earlier answer; not read.")


class FunctionCall(Strict):
    """A call that the assistant made."""

    type: Literal["function_call"] = Field(description="Always function_call.")
    call_id: str = Field(max_length=128, description="By which a result answers it.")
    name: Text = Field(max_length=64, description="The function's name.")
    arguments: Text = Field(description="Its arguments, as the text of a JSON object.")
    id: str | None = Field(None, max_length=128, description="Of an earlier answer; not read.")
    status: str | None = Field(None, max_length=32, description="Of an earlier answer; not read.")


class FunctionCallOutput(Strict):
    """What a call gave."""

    type: Literal["function_call_output"] = Field(description="Always function_call_output.")
    call_id: str = Field(max_length=128, description="The call that it answers.")
    output: Text = Field(description="The result.")


class SchemaFormat(Strict):
    """An answer that keeps to a JSON schema."""

    type: Literal["json_schema"] = Field(description="JSON that keeps to a schema.")
    name: str = Field(max_length=64, description="A name, which changes nothing.")
    content: dict[str, Any] = Field(alias="schema", description="The schema.")
    description: Text | None = Field(None, description="What it is for, which changes nothing.")
    strict: bool | None = Field(None, description="Schemas are always kept to.")

    def form(self) -> Form | None:
        return Form.json_schema(self.content)


class TextOptions(Strict):
    """Of the answer's text."""

    format: Annotated[AnyText | JsonObject | SchemaFormat, Field(discriminator="type")] | None = Field(None, description="Its form.")


class FunctionTool(Strict):
    """A function that the model may call."""

    type: Literal["function"] = Field(description="Always function.")
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="Its name.")
    description: Text | None = Field(None, description="What it does, for the model.")
    parameters: dict[str, Any] | None = Field(None, description="JSON schema of its arguments.")
    strict: bool | None = Field(None, description="Schemas are always kept to.")


class FunctionChoice(Strict):
    """The function that must be called."""

    type: Literal["function"] = Field(description="Always function.")
    name: str = Field(max_length=64, description="Its name.")


class ResponseRequest(Strict):
    """A conversation that wants an answer."""

    model: str = Field("", description="Name of the model; the first one where it is not given.")
    input: Text | Annotated[list[FunctionCall | FunctionCallOutput | InputMessage], Field(min_length=1, max_length=4096)] = Field(
        description="A question, or the conversation so far."
    )
    instructions: Text | None = Field(None, description="The system prompt.")
    max_output_tokens: int | None = Field(None, ge=1, description="Tokens of the answer at most.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 takes the likeliest token.")
    top_p: float | None = Field(None, gt=0, le=1, description="Draw among the fewest likeliest tokens whose probabilities add up to it.")
    text: TextOptions | None = Field(None, description="The form of the answer.")
    tools: Annotated[list[FunctionTool], Field(max_length=128)] | None = Field(None, description="Functions that the model may call.")
    tool_choice: Literal["auto", "none", "required"] | FunctionChoice | None = Field(None, description="Which of them it calls.")
    parallel_tool_calls: bool = Field(True, description="Whether an answer may be several calls.")
    stream: bool = Field(False, description="Send the answer piece by piece, as server-sent events.")
    store: Literal[False] | None = Field(None, description="Nothing is stored: true is refused.")
    truncation: Literal["disabled"] | None = Field(None, description="Nothing is ever cut off.")
    user: str | None = Field(None, max_length=512, description="Whose request it is: users share the machine evenly.")
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = Field(None, description="Given back with the answer.")
    timeout: float | None = Field(None, gt=0, le=86400, description="Seconds after which the request has failed.")

    def for_template(self) -> list[dict[str, Any]]:
        """The conversation as chat templates read it."""
        first = [] if self.instructions is None else [{"role": "system", "content": self.instructions}]
        if isinstance(self.input, str):
            return [*first, {"role": "user", "content": self.input}]
        return [*first, *(_message(item) for item in self.input)]


def _message(item: FunctionCall | FunctionCallOutput | InputMessage) -> dict[str, Any]:
    match item:
        case FunctionCall():
            function = {"name": item.name, "arguments": object_of(item.arguments) or {}}
            return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
        case FunctionCallOutput():
            return {"role": "tool", "content": item.output}
        case InputMessage():
            text = item.content if isinstance(item.content, str) else "".join(part.text for part in item.content)
            return {"role": "system" if item.role == "developer" else item.role, "content": text}
