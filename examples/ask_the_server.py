"""Start the local server, ask it by OpenAI's own client, and stop it again.

python examples/ask_the_server.py          (pip install 'edgelm[server]' openai)
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from openai import OpenAI

COLOUR: Any = {"type": "json_schema", "json_schema": {"name": "colour", "schema": {"enum": ["red", "green", "blue"]}}}
EDGELM = Path(sys.executable).with_name("edgelm")

with subprocess.Popen([EDGELM, "serve", "smollm2-135m", "--port", "0"], stderr=subprocess.PIPE, text=True) as server:
    try:
        assert server.stderr is not None
        address = next(found[0] for line in server.stderr if (found := re.search(r"http://\S+", line)))
        with OpenAI(base_url=address, api_key="any") as client:
            question: Any = [{"role": "user", "content": "Name the capital of France."}]
            for chunk in client.chat.completions.create(model="smollm2-135m", messages=question, temperature=0, stream=True):
                print(chunk.choices[0].delta.content or "", end="", flush=True)
            print()
            question = [{"role": "user", "content": "Which colour has the sky?"}]
            answer = client.chat.completions.create(model="smollm2-135m", messages=question, temperature=0, response_format=COLOUR)
            print("As JSON:", answer.choices[0].message.content)
    finally:
        server.terminate()
