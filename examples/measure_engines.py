"""Measure two engines on one model, taking turns, and say how sure the figures are (needs edgelm[bench])."""

from edgelm.bench.figures import median_interval, paired_ratio, speeds
from edgelm.bench.interleave import Workload
from edgelm.bench.run import run_benchmark
from edgelm.runtime.catalogue import resolve_model

workload = Workload(backends=("cpu", "llamacpp"), prompts=(), n_generate=32, repeat=5, n_cold=0)
record = run_benchmark(resolve_model("smollm2-135m"), workload, {}, progress=lambda *_: None, with_limits=False)

ours, theirs = record.measurements
for measured in (ours, theirs):
    speed = median_interval(speeds(measured))
    print(f"{measured.engine}: {speed.value:.0f} tokens/s (95% interval {speed.low:.0f} to {speed.high:.0f})")
ratio = paired_ratio(speeds(ours), speeds(theirs))
print(f"ratio {ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})")
joules = "not measured: " + record.power.reason if ours.energy is None else f"{ours.energy.gross_j:.1f} J"
print(f"energy {joules}")
