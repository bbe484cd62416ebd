"""Show what the model thinks could come next, with probabilities.

python examples/likely_next_words.py "The capital of France is"
"""

import math
import sys

from edgelm import LLM

prompt = sys.argv[1] if len(sys.argv) > 1 else "The capital of France is"

with LLM("smollm2-135m") as llm:
    done = llm.generate(prompt, max_tokens=1, logprobs=5, ignore_eos=True)
for candidate in done.logprobs[0].top if done.logprobs else ():
    print(f"{math.exp(candidate.logprob):6.1%}  {prompt}{candidate.token}")
