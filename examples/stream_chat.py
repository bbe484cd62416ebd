"""Ask one question and show the answer as it is written.

python examples/stream_chat.py "Why is the sky blue?"
"""

import sys

from edgelm import LLM

question = sys.argv[1] if len(sys.argv) > 1 else "Why is the sky blue?"

with LLM("smollm2-135m") as llm:
    for delta in llm.chat([{"role": "user", "content": question}], stream=True, temperature=0, max_tokens=60):
        print(delta.text, end="", flush=True)
        if delta.timings is not None:
            print(f"\n[{delta.timings.tokens_per_second:.0f} tokens/s]")
