from __future__ import annotations

import json
from dataclasses import replace

import pytest
from bench_records import load_record, run_record

from edgelm.bench.report.llama_bench import jsonl

TEXTS = (
    *("build_commit", "cpu_info", "gpu_info", "backends", "model_filename", "model_type", "cpu_mask", "type_k", "type_v", "split_mode"),
    *("devices", "tensor_split", "tensor_buft_overrides", "load_mode", "test_time"),
)
INTEGERS = (
    *("build_number", "model_size", "model_n_params", "n_batch", "n_ubatch", "n_threads", "poll", "n_gpu_layers", "n_cpu_moe", "main_gpu"),
    *("flash_attn", "no_op_offload", "fit_target", "fit_min_ctx", "n_prompt", "n_gen", "n_depth", "avg_ns", "stddev_ns"),
)
BOOLEANS = ("cpu_strict", "no_kv_offload", "embeddings", "no_host")
NUMBERS = ("avg_ts", "stddev_ts")


def test_names_and_types_are_those_of_llama_bench() -> None:
    for line in jsonl(run_record()).splitlines():
        fields = json.loads(line)
        assert set(fields) == {*TEXTS, *INTEGERS, *BOOLEANS, *NUMBERS, "samples_ns", "samples_ts"}
        assert all(isinstance(fields[name], str) for name in TEXTS)
        assert all(fields[name] is None or type(fields[name]) is int for name in INTEGERS)
        assert all(fields[name] is None or type(fields[name]) is bool for name in BOOLEANS)
        assert all(type(fields[name]) is float for name in NUMBERS)


def test_figures_are_those_of_the_trials() -> None:
    record = run_record(("cpu",), (2,), depths=(1024,), repeat=4)
    decode, prefill, both = map(json.loads, jsonl(record).splitlines())
    assert [(f["n_prompt"], f["n_gen"], f["n_depth"]) for f in (decode, prefill, both)] == [(0, 32, 1024), (512, 0, 1024), (512, 32, 0)]
    for fields in (decode, prefill, both):
        n_tokens = fields["n_prompt"] + fields["n_gen"]
        assert fields["samples_ts"] == pytest.approx([1e9 * n_tokens / ns for ns in fields["samples_ns"]])
        assert fields["avg_ns"] == pytest.approx(sum(fields["samples_ns"]) / 4, abs=1)
    assert decode["test_time"] == "2025-11-22T18:30:10Z"


def test_what_edgebench_does_not_know_is_not_invented() -> None:
    fields = json.loads(jsonl(run_record(("cpu",), (2,), depths=(0,))).splitlines()[0])
    assert fields["build_commit"] == fields["gpu_info"] == fields["type_k"] == ""
    assert fields["n_batch"] is fields["flash_attn"] is fields["n_gpu_layers"] is None


def test_incomplete_measurements_are_left_out_and_one_trial_has_no_deviation() -> None:
    record = run_record(("cpu",), (2,), depths=(0,), repeat=1)
    record = replace(record, measurements=(record.measurements[0], replace(record.measurements[1], state="interrupted")))
    (line,) = jsonl(record).splitlines()
    assert (json.loads(line)["stddev_ns"], json.loads(line)["stddev_ts"]) == (0, 0.0)
    assert jsonl(load_record()) == ""
