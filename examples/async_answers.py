"""Answer several questions at once from an event loop, and give up on one that takes too long.

python examples/async_answers.py
"""

import asyncio

from edgelm import LLM

QUESTIONS = ("Name a fruit.", "Name a river in Europe.", "Name a musical instrument.")


async def ask(llm: LLM, question: str) -> str:
    done = await llm.achat([{"role": "user", "content": question}], temperature=0, max_tokens=16)
    return done.text


async def main() -> None:
    with LLM("smollm2-135m") as llm:
        for question, answer in zip(QUESTIONS, await asyncio.gather(*(ask(llm, question) for question in QUESTIONS)), strict=True):
            print(f"{question} {answer}")
        try:
            await asyncio.wait_for(llm.agenerate("Once upon a time", max_tokens=None, ignore_eos=True), timeout=0.3)
        except TimeoutError:
            print("The endless story was stopped.")


asyncio.run(main())
