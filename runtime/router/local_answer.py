"""An answer of this device while it comes, and what it came to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from edgelm.runtime.certainty import TokenCertainty
from edgelm.runtime.chat_model import Event, Finish, TextDelta, ToolCallDelta, Usage
from edgelm.runtime.router.thinking import Thought
from edgelm.runtime.tool_calls import CallPiece


@dataclass
class LocalAnswer:
    """An answer of this device, as far as it came.

    Attributes:
        said: text and calls.
        ends: of its choices.
        usage: once it has ended.
    """

    said: list[Event] = field(default_factory=list)
    ends: list[Finish] = field(default_factory=list)
    certainties: list[TokenCertainty] = field(default_factory=list)
    usage: Usage | None = None

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.said if isinstance(event, TextDelta))

    @property
    def is_cut_off(self) -> bool:
        """By max_tokens or the context."""
        return any(end.reason == "length" for end in self.ends)

    @property
    def calls(self) -> tuple[CallPiece, ...]:
        """Whole."""
        return whole_calls([event.piece for event in self.said if isinstance(event, ToolCallDelta)])

    @classmethod
    def thought_over(cls, thought: Thought, usage: Usage | None) -> LocalAnswer:
        """The answer that most samples came to."""
        said: list[Event] = [TextDelta(0, thought.text)] if thought.text else []
        said += [ToolCallDelta(0, call) for call in thought.calls]
        return cls(said, [Finish(0, "tool_calls" if thought.calls else "stop")], usage=usage)


def whole_calls(pieces: Sequence[CallPiece]) -> tuple[CallPiece, ...]:
    """Calls with all of their arguments, from their pieces."""
    heads = [piece for piece in pieces if piece.name is not None]
    return tuple(replace(head, arguments="".join(piece.arguments for piece in pieces if piece.index == head.index)) for head in heads)
