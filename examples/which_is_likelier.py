"""Let the model say which of several sentences it finds most natural, by their perplexity.

python examples/which_is_likelier.py
"""

from edgelm import LLM

SENTENCES = (
    "She put the kettle on and made a cup of tea.",
    "She put the kettle on and made a cup of gravel.",
    "Tea of cup a made and on kettle the put she.",
)

with LLM("smollm2-135m") as llm:
    ranked = sorted((llm.score(sentence).perplexity, sentence) for sentence in SENTENCES)
for perplexity, sentence in ranked:
    print(f"{perplexity:8.1f}  {sentence}")
