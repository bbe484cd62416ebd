"""Text to tokens and back: see Tokenizer."""

from edgelm.runtime.tokenizer.tokenizer import Tokenizer

__all__ = ["Tokenizer"]
