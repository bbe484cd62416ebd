"""JSON Lines with the field names and types of `llama-bench -o jsonl`, so that scripts made for it read edgelm's records.

Fields and types are those of llama.cpp's tools/llama-bench/llama-bench.cpp (struct test: get_fields, get_field_type). What edgebench does
not know is "" where llama-bench has a text, and null elsewhere; nothing is filled with llama.cpp's defaults. Times are those of
tokens_per_s in bench/figures.py; a test of both phases counts all of its tokens, as llama-bench's -pg does, but its prefill gives the first
generated token, so that one step less is computed than llama-bench computes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from edgelm.bench.figures import speeds
from edgelm.bench.record import Measurement, Record


def jsonl(record: Record) -> str:
    """One line per measurement with trials; incomplete ones are left out, because the format has no field to mark them."""
    lines = [
        json.dumps(_fields(record, m), allow_nan=False, ensure_ascii=False)
        for m in record.measurements
        if m.trials and m.state == "complete"
    ]
    return "".join(line + "\n" for line in lines)


def _fields(record: Record, m: Measurement) -> Mapping[str, object]:
    model = record.model
    seconds = np.array([trial.stamps_s[-1] - trial.start_s for trial in m.trials])
    nanoseconds = np.rint(seconds * 1e9).astype(np.int64)
    rates = speeds(m)
    return {
        "build_commit": "",
        "build_number": None,
        "cpu_info": record.machine.cpu,
        "gpu_info": "",
        "backends": m.engine,
        "model_filename": model.name if model else "",
        "model_type": model.format if model else "",
        "model_size": model.n_bytes if model else None,
        "model_n_params": model.n_weights if model else None,
        "n_batch": None,
        "n_ubatch": None,
        "n_threads": m.n_threads,
        "cpu_mask": "",
        "cpu_strict": None,
        "poll": None,
        "type_k": "",
        "type_v": "",
        "n_gpu_layers": None,
        "n_cpu_moe": None,
        "split_mode": "",
        "main_gpu": None,
        "no_kv_offload": None,
        "flash_attn": None,
        "devices": "",
        "tensor_split": "",
        "tensor_buft_overrides": "",
        "load_mode": "",
        "embeddings": None,
        "no_op_offload": None,
        "no_host": None,
        "fit_target": None,
        "fit_min_ctx": None,
        "n_prompt": m.n_prompt,
        "n_gen": m.n_generate,
        "n_depth": m.depth,
        "test_time": _test_time(record, m),
        "avg_ns": int(nanoseconds.mean()),
        "stddev_ns": int(_deviation(nanoseconds)),
        "avg_ts": float(rates.mean()),
        "stddev_ts": float(_deviation(rates)),
        "samples_ns": nanoseconds.tolist(),
        "samples_ts": rates.tolist(),
    }


def _test_time(record: Record, m: Measurement) -> str:
    """When the first trial began, as llama-bench writes it: RFC 3339 in UTC to the second."""
    began = datetime.fromisoformat(record.started) + timedelta(seconds=m.trials[0].start_s)
    return began.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _deviation(values: NDArray[np.float64] | NDArray[np.int64]) -> float:
    """Standard deviation with n - 1; 0 of one value, as llama-bench has it."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
