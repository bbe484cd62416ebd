"""Answer on this device, and ask a stronger endpoint where the owner allows it, without its seeing personal data.

Any OpenAI-compatible endpoint will do; here it is a second edgelm on this machine, so that nothing really leaves it.

python examples/answer_here_first.py          (pip install 'edgelm[server,route]')
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from edgelm import Level, RoutedLLM

EDGELM = Path(sys.executable).with_name("edgelm")
CONFIG = """
level = "redact"            # personal data that is recognized is replaced before anything leaves

[cloud]
url = "{url}"
model = "smollm2-135m"
price_input = 0.25          # for a million tokens
price_output = 2.00

[budget]
requests_per_day = 10
file = "budget.sqlite"

[log]
file = "egress.jsonl"

[after]
unknown = "cloud"           # this model is not calibrated: see `edgelm route calibrate`
"""

with (
    tempfile.TemporaryDirectory() as folder,
    subprocess.Popen([EDGELM, "serve", "smollm2-135m", "--port", "0"], stderr=subprocess.PIPE, text=True) as cloud,
):
    try:
        assert cloud.stderr is not None
        url = next(found[0] for line in cloud.stderr if (found := re.search(r"http://\S+", line)))
        config = Path(folder) / "route.toml"
        config.write_text(CONFIG.format(url=url))
        question = [{"role": "user", "content": "What is the capital of France? I am jane.doe@example.org."}]
        with RoutedLLM("smollm2-135m", config) as llm:
            for level in (Level.NEVER, Level.ALLOW):  # a request can be stricter than the configuration, never freer
                answer = llm.chat(question, temperature=0, max_tokens=40, level=level)
                told = answer.decision
                print(f"{answer.text}\n[{told.route}: {told.why}; replaced {dict(told.redacted)}, cost {told.cost}]\n")
    finally:
        cloud.terminate()
    log = subprocess.run([EDGELM, "route", "verify", "--path", f"{folder}/egress.jsonl"], capture_output=True, text=True, check=True)
    print(log.stdout.partition(": ")[2].splitlines()[0])
