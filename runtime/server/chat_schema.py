"""What a chat completion may ask."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgelm.runtime.form import JSON_OBJECT, Form
from edgelm.runtime.server.sampling_fields import SamplingFields, Text


class TextPart(BaseModel):
    """A piece of a message. Text is the only kind that these models read."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"] = Field(description="Always text.")
    text: Text = Field(description="The text.")


class ChatMessage(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(
        description="Who said it; developer is read as system, which models know."
    )
    content: Text | Annotated[list[TextPart], Field(max_length=1024)] = Field(description="What was said: text, or parts of text.")
    name: Text | None = Field(None, max_length=64, description="A name of who said it, for templates that show it.")

    def for_template(self) -> dict[str, Any]:
        """As chat templates read it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        message = {"role": "system" if self.role == "developer" else self.role, "content": text}
        return message | ({"name": self.name} if self.name is not None else {})


class AnyText(BaseModel):
    """An answer of any form."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"] = Field(description="Any text.")

    def form(self) -> Form | None:
        return None


class JsonObject(BaseModel):
    """An answer that is a JSON object."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["json_object"] = Field(description="Some JSON object.")

    def form(self) -> Form | None:
        return JSON_OBJECT


class NamedSchema(BaseModel):
    """A JSON schema."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    name: str = Field(max_length=64, description="A name, which changes nothing.")
    description: Text | None = Field(None, description="What it is for, which changes nothing.")
    content: dict[str, Any] = Field(alias="schema", description="The schema.")
    strict: bool | None = Field(None, description="Schemas are always kept to.")


class JsonSchema(BaseModel):
    """An answer that keeps to a JSON schema."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["json_schema"] = Field(description="JSON that keeps to a schema.")
    json_schema: NamedSchema = Field(description="The schema.")

    def form(self) -> Form | None:
        return Form.json_schema(self.json_schema.content)


class Expression(BaseModel):
    """An answer that a regular expression or a grammar describes (edgelm's own)."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["regex", "lark", "gbnf"] = Field(description="A regular expression, or a grammar of Lark's or of llama.cpp's kind.")
    text: Text = Field(description="The expression or grammar.")

    def form(self) -> Form | None:
        return Form(self.type, self.text)


ResponseFormat = Annotated[AnyText | JsonObject | JsonSchema | Expression, Field(discriminator="type")]


class ChatCompletionRequest(SamplingFields):
    """A conversation that wants an answer."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)] = Field(description="The conversation so far.")
    max_tokens: int | None = Field(None, ge=1, description="Tokens of an answer at most; as many as the context holds if not given.")
    max_completion_tokens: int | None = Field(None, ge=1, description="The newer name of max_tokens.")
    response_format: ResponseFormat | None = Field(None, description="The form that the answer must have.")
    logprobs: bool = Field(False, description="Tell the log probability of each token of the answer.")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="And those of so many likeliest tokens at each place; needs logprobs.")
