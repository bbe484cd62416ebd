"""What Anthropic's messages may ask."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from edgelm.runtime.server.sampling_fields import MOST_STOPS, StopString, Text
from edgelm.runtime.server.strict import Strict


class TextBlock(Strict):
    """A piece of text."""

    type: Literal["text"] = Field(description="Always text.")
    text: Text = Field(description="The text.")
    cache_control: dict[str, Any] | None = Field(None, description="Beginnings are always kept; this changes nothing.")
    citations: None = Field(None, description="Not supported.")


class ToolUseBlock(Strict):
    """A call that the assistant made."""

    type: Literal["tool_use"] = Field(description="Always tool_use.")
    id: str = Field(max_length=128, description="By which a result answers it.")
    name: Text = Field(max_length=64, description="The function's name.")
    input: dict[str, Any] = Field(description="Its arguments.")


class ToolResultBlock(Strict):
    """What a call gave."""

    type: Literal["tool_result"] = Field(description="Always tool_result.")
    tool_use_id: str = Field(max_length=128, description="The call that it answers.")
    content: Text | list[TextBlock] = Field("", description="The result.")
    is_error: bool = Field(False, description="Whether the call failed.")


Block = Annotated[TextBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")]


class Message(Strict):
    """One message of a conversation."""

    role: Literal["user", "assistant"] = Field(description="Who said it.")
    content: Text | Annotated[list[Block], Field(min_length=1, max_length=1024)] = Field(description="What was said.")

    def for_template(self) -> list[dict[str, Any]]:
        """As chat templates read it: results of tools are messages of their own."""
        if isinstance(self.content, str):
            return [{"role": self.role, "content": self.content}]
        results = [{"role": "tool", "content": text_of(block.content)} for block in self.content if isinstance(block, ToolResultBlock)]
        text = "".join(block.text for block in self.content if isinstance(block, TextBlock))
        used = [block for block in self.content if isinstance(block, ToolUseBlock)]
        calls = [{"type": "function", "function": {"name": block.name, "arguments": block.input}} for block in used]
        said: dict[str, Any] = {"role": self.role, "content": text} | ({"tool_calls": calls} if calls else {})
        return [*results, said] if text or calls or not results else results


class OfferedTool(Strict):
    """A function that the model may call."""

    type: Literal["custom"] = Field("custom", description="Always custom.")
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="Its name.")
    description: Text = Field("", description="What it does, for the model.")
    input_schema: dict[str, Any] = Field(description="JSON schema of its arguments.")
    cache_control: dict[str, Any] | None = Field(None, description="Changes nothing.")


class ToolChoice(Strict):
    """Which tools the answer uses."""

    type: Literal["auto", "any", "tool", "none"] = Field(description="Text or calls; a call; a call of the one named; text.")
    name: str | None = Field(None, max_length=64, description="Of the tool.")
    disable_parallel_tool_use: bool = Field(False, description="One call at most.")


class Metadata(Strict):
    """Of a request."""

    user_id: str | None = Field(None, max_length=512, description="Whose request it is: users share the machine evenly.")


class CountRequest(Strict):
    """A conversation to be counted."""

    model: str = Field("", description="Name of the model; the first one where it is not given.")
    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)] = Field(description="The conversation so far.")
    system: Text | list[TextBlock] | None = Field(None, description="The system prompt.")
    tools: Annotated[list[OfferedTool], Field(max_length=128)] | None = Field(None, description="Functions that the model may call.")
    tool_choice: ToolChoice | None = Field(None, description="Which of them it uses.")

    def for_template(self) -> list[dict[str, Any]]:
        """The conversation as chat templates read it."""
        first = [] if self.system is None else [{"role": "system", "content": text_of(self.system)}]
        return [*first, *(each for message in self.messages for each in message.for_template())]


class MessagesRequest(CountRequest):
    """A conversation that wants an answer."""

    max_tokens: int = Field(ge=1, description="Tokens of the answer at most.")
    stop_sequences: Annotated[list[StopString], Field(max_length=MOST_STOPS)] | None = Field(None, description="Text that ends the answer.")
    stream: bool = Field(False, description="Send the answer piece by piece, as server-sent events.")
    temperature: float | None = Field(None, ge=0, le=1, description="0 takes the likeliest token.")
    top_p: float | None = Field(None, gt=0, le=1, description="Draw among the fewest likeliest tokens whose probabilities add up to it.")
    top_k: int | None = Field(None, ge=0, le=1_000_000, description="Draw among so many likeliest tokens.")
    metadata: Metadata | None = Field(None, description="Whose request it is.")


def text_of(content: str | list[TextBlock]) -> str:
    return content if isinstance(content, str) else "".join(block.text for block in content)
