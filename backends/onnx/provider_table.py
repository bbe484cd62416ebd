"""The execution providers of ONNX Runtime that edgelm knows: one row each, with the options that each one takes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from edgelm.errors import InvalidRequestError


@dataclass(frozen=True)
class Option:
    """What the value of one provider option may be.

    Attributes:
        values: the allowed ones; empty where any that matches `pattern` is allowed.
        pattern: regular expression of the whole value.
        form: the pattern in words.
    """

    values: tuple[str, ...] = ()
    pattern: str = ".+"
    form: str = "a text"

    def allows(self, value: str) -> bool:
        return value in self.values if self.values else re.fullmatch(self.pattern, value) is not None

    @property
    def wanted(self) -> str:
        return f"one of {', '.join(self.values)}" if self.values else self.form


SWITCH = Option(("0", "1"))
NUMBER = Option(pattern=r"\d+", form="a whole number")
PATH = Option(form="a path")
TEXT = Option()


@dataclass(frozen=True)
class Provider:
    """One execution provider.

    Attributes:
        name: what edgelm calls it.
        ort_name: what ONNX Runtime calls it.
        summary: what it computes on.
        package: the wheel that brings it; empty where no wheel does.
        plugin: module of a plug-in wheel, which adds the provider to any ONNX Runtime; empty where it is built into ONNX Runtime itself.
        platforms: values of sys.platform that have it.
        advice: what to do where ONNX Runtime has it not.
        elsewhere: what to do on a platform that cannot have it.
        options: the options it takes, by name.
        exclusive: options of which only one may be given.
        defaults: options that are set where neither they nor their alternatives were given.
        flags: options that the provider takes as bits of one number, with their bits.
    """

    name: str
    ort_name: str
    summary: str
    package: str
    advice: str
    elsewhere: str = "run it there, or choose another provider"
    plugin: str = ""
    platforms: tuple[str, ...] = ("linux", "darwin", "win32")
    options: Mapping[str, Option] = field(default_factory=dict)
    exclusive: tuple[str, ...] = ()
    defaults: Mapping[str, str] = field(default_factory=dict)
    flags: Mapping[str, int] = field(default_factory=dict)

    def with_defaults(self, options: Mapping[str, str]) -> dict[str, str]:
        """The options, and the defaults of those that were not given."""
        taken = self.exclusive if any(name in options for name in self.exclusive) else ()
        return {**{name: value for name, value in self.defaults.items() if name not in taken}, **options}

    def check_options(self, options: Mapping[str, str]) -> None:
        """Refuse what the provider would ignore, or answer by leaving all nodes to the CPU.

        Raises:
            InvalidRequestError: an unknown option, a value that the option does not take, or two that exclude each other.
        """
        if sum(name in options for name in self.exclusive) > 1:
            raise InvalidRequestError(f"the provider {self.name} takes only one of {', '.join(self.exclusive)}; leave out the others")
        for name, value in options.items():
            option = self.options.get(name)
            if option is None:
                has = f"it has {', '.join(self.options)}" if self.options else "it has none"
                raise InvalidRequestError(f"the provider {self.name} has no option {name!r}; {has}")
            if not option.allows(value):
                raise InvalidRequestError(f"the option {self.name}.{name} is {value!r}; give {option.wanted}")


QNN_CHIPS = (
    *("SM7675", "SM8325", "SM8350", "SM8450", "SM8475", "SM8550", "SM8635", "SM8650", "SM8750", "SM8850", "SM8975"),
    *("SC8380XP", "SC8480XP"),
)
"""Chips that the provider knows by name; any name else it would ignore with no more than a warning."""

# Names and values: docs/execution_providers/QNN-ExecutionProvider.md of onnxruntime-qnn 2.7, and the option names that its library parses.
_QNN = {
    "backend_type": Option(("htp", "gpu", "cpu", "saver", "ir")),
    "backend_path": PATH,
    "soc_model": Option(pattern=r"\d+|" + "|".join(QNN_CHIPS), form=f"the chip's number with Qualcomm, or one of {', '.join(QNN_CHIPS)}"),
    "htp_arch": Option(("0", "68", "69", "73", "75", "79", "81")),
    "device_id": NUMBER,
    "htp_performance_mode": Option(
        (
            *("burst", "balanced", "default", "high_performance", "high_power_saver", "low_balanced", "low_power_saver", "power_saver"),
            *("extreme_power_saver", "sustained_high_performance"),
        )
    ),
    "htp_graph_finalization_optimization_mode": Option(("0", "1", "2", "3")),
    "qnn_context_priority": Option(("low", "normal", "normal_high", "high")),
    "vtcm_mb": NUMBER,
    "rpc_control_latency": NUMBER,
    "enable_htp_fp16_precision": SWITCH,
    "enable_htp_spill_fill_buffer": SWITCH,
    "enable_htp_shared_memory_allocator": SWITCH,
    "enable_vtcm_backup_buffer_sharing": SWITCH,
    "enable_block_quant_weight_optimization": SWITCH,
    "htp_share_resource_optimization": Option(("1",)),
    "htp_bf16_enable": SWITCH,
    "extended_udma": SWITCH,
    "offload_graph_io_quantization": SWITCH,
    "enable_htp_prepare_only": SWITCH,
    "disable_file_mapped_weights": SWITCH,
    "skip_qnn_version_check": SWITCH,
    "op_packages": TEXT,
    "profiling_level": Option(("off", "basic", "detailed", "optrace")),
    "profiling_file_path": PATH,
    "qnn_saver_path": PATH,
    "dump_json_qnn_graph": SWITCH,
    "json_qnn_graph_dir": PATH,
    "enable_framework_op_trace": SWITCH,
    "framework_op_trace_dir": PATH,
}

# onnxruntime's include/onnxruntime/core/providers/nnapi/nnapi_provider_factory.h
_NNAPI_FLAGS = {"use_fp16": 1, "use_nchw": 2, "cpu_disabled": 4, "cpu_only": 8}

# onnxruntime's docs/execution-providers pages CUDA, CoreML, DirectML, OpenVINO, XNNPACK, WebGPU
_CUDA = {
    "device_id": NUMBER,
    "gpu_mem_limit": NUMBER,
    "arena_extend_strategy": Option(("kNextPowerOfTwo", "kSameAsRequested")),
    "cudnn_conv_algo_search": Option(("EXHAUSTIVE", "HEURISTIC", "DEFAULT")),
    "do_copy_in_default_stream": SWITCH,
    "use_tf32": SWITCH,
    "prefer_nhwc": SWITCH,
    "use_ep_level_unified_stream": SWITCH,
    "enable_skip_layer_norm_strict_mode": SWITCH,
}
_COREML = {
    "ModelFormat": Option(("MLProgram", "NeuralNetwork")),
    "MLComputeUnits": Option(("ALL", "CPUAndNeuralEngine", "CPUAndGPU", "CPUOnly")),
    "RequireStaticInputShapes": SWITCH,
    "EnableOnSubgraphs": SWITCH,
    "SpecializationStrategy": Option(("Default", "FastPrediction")),
    "ProfileComputePlan": SWITCH,
    "AllowLowPrecisionAccumulationOnGPU": SWITCH,
    "ModelCacheDirectory": PATH,
}
_DML = {
    "device_id": NUMBER,
    "performance_preference": Option(("default", "high_performance", "minimum_power")),
    "device_filter": Option(("any", "gpu", "npu")),
    "disable_metacommands": Option(("true", "false")),
}
_OPENVINO = {
    "device_type": TEXT,
    "precision": Option(("FP32", "FP16", "ACCURACY")),
    "num_of_threads": NUMBER,
    "num_streams": NUMBER,
    "cache_dir": PATH,
    "load_config": PATH,
    "model_priority": Option(("LOW", "MEDIUM", "HIGH", "DEFAULT")),
    "disable_dynamic_shapes": Option(("true", "false")),
}
_WEBGPU = {
    "deviceId": NUMBER,
    "preferredLayout": Option(("NCHW", "NHWC")),
    "powerPreference": Option(("high-performance", "low-power")),
    "validationMode": Option(("disabled", "wgpuOnly", "basic", "full")),
    "storageBufferCacheMode": Option(("disabled", "lazyRelease", "simple", "bucket")),
}

_ROWS = (
    Provider("cpu", "CPUExecutionProvider", "the CPU", "onnxruntime", "pip install 'edgelm[onnx]'"),
    Provider(
        "qnn",
        "QNNExecutionProvider",
        "Qualcomm NPUs (on x86-64 an emulator of them)",
        "onnxruntime-qnn",
        "pip install 'edgelm[qnn]'",
        plugin="onnxruntime_qnn",
        platforms=("linux", "win32", "android"),
        options=_QNN,
        exclusive=("backend_type", "backend_path"),
        defaults={"backend_type": "htp"},
    ),
    Provider(
        "nnapi",
        "NnapiExecutionProvider",
        "Android's neural network interface",
        "",
        "build ONNX Runtime with --use_nnapi, or choose another provider",
        elsewhere="copy the exported folder into an Android app, or try its graphs here with providers=cpu",
        platforms=("android",),
        options=dict.fromkeys(_NNAPI_FLAGS, SWITCH),
        flags=_NNAPI_FLAGS,
    ),
    Provider(
        "xnnpack",
        "XnnpackExecutionProvider",
        "XNNPACK on the CPU",
        "",
        "no wheel has it; build ONNX Runtime with --use_xnnpack, or leave it out of the providers",
        platforms=("linux", "darwin", "win32", "android"),
        options={"intra_op_num_threads": NUMBER},
    ),
    Provider(
        "coreml",
        "CoreMLExecutionProvider",
        "Apple's neural engine, GPU and CPU",
        "onnxruntime",
        "pip install onnxruntime, on macOS",
        platforms=("darwin",),
        options=_COREML,
    ),
    Provider(
        "cuda",
        "CUDAExecutionProvider",
        "NVIDIA GPUs",
        "onnxruntime-gpu",
        "pip uninstall onnxruntime, then pip install onnxruntime-gpu",
        platforms=("linux", "win32"),
        options=_CUDA,
    ),
    Provider(
        "dml",
        "DmlExecutionProvider",
        "GPUs through DirectML",
        "onnxruntime-directml",
        "pip uninstall onnxruntime, then pip install onnxruntime-directml",
        platforms=("win32",),
        options=_DML,
    ),
    Provider(
        "openvino",
        "OpenVINOExecutionProvider",
        "Intel CPUs, GPUs and NPUs",
        "onnxruntime-openvino",
        "pip uninstall onnxruntime, then pip install onnxruntime-openvino",
        platforms=("linux", "win32"),
        options=_OPENVINO,
    ),
    Provider(
        "webgpu",
        "WebGpuExecutionProvider",
        "GPUs through WebGPU",
        "onnxruntime-ep-webgpu",
        "pip install onnxruntime-ep-webgpu",
        plugin="onnxruntime_ep_webgpu",
        options=_WEBGPU,
    ),
)

PROVIDERS: Mapping[str, Provider] = MappingProxyType({row.name: row for row in _ROWS})


def find_provider(name: str) -> Provider:
    """The row of a provider.

    Raises:
        InvalidRequestError: no row has this name.
    """
    row = PROVIDERS.get(name)
    if row is None:
        raise InvalidRequestError(f"no execution provider is called {name!r}; edgelm knows {', '.join(PROVIDERS)}")
    return row


def short_name(ort_name: str) -> str:
    """edgelm's name of a provider that ONNX Runtime named; ONNX Runtime's own where edgelm has no row for it."""
    return next((row.name for row in PROVIDERS.values() if row.ort_name == ort_name), ort_name)
