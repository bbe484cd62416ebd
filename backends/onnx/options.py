"""What a person may choose of the ONNX Runtime engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgelm.backends.onnx.provider_table import PROVIDERS, find_provider
from edgelm.errors import InvalidRequestError


@dataclass(frozen=True)
class ONNXOptions:
    """Options of the backend "onnx".

    Attributes:
        providers: execution providers, the one to be asked first first; nodes fall to the CPU only where "cpu" is among them.
            Empty for the one that the exported folder was made for.
        strict_provider: every node must run on the first provider; anything else is an error.
        spinning: threads wait for work awake, which is faster and keeps the cores busy; None: awake where there is a core for each.
        profile: ONNX Runtime writes a profile of every run to files whose names begin so; they are whole once the model is closed.
        qnn, nnapi, xnnpack, coreml, cuda, dml, openvino, webgpu: options of that provider, by the provider's own names.
    """

    providers: tuple[str, ...] = ()
    strict_provider: bool = False
    spinning: bool | None = None
    profile: str | None = None
    qnn: Mapping[str, str] = field(default_factory=dict)
    nnapi: Mapping[str, str] = field(default_factory=dict)
    xnnpack: Mapping[str, str] = field(default_factory=dict)
    coreml: Mapping[str, str] = field(default_factory=dict)
    cuda: Mapping[str, str] = field(default_factory=dict)
    dml: Mapping[str, str] = field(default_factory=dict)
    openvino: Mapping[str, str] = field(default_factory=dict)
    webgpu: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """
        Raises:
            InvalidRequestError: an unknown provider or option, a provider named twice, options of one that is not asked for, or no folder
                for the profile, which ONNX Runtime would leave out without a word.
        """
        for name in self.providers:
            find_provider(name)
        if len(set(self.providers)) < len(self.providers):
            raise InvalidRequestError(f"providers is {', '.join(self.providers)}; name each provider once")
        for name, options in self.provider_options.items():
            if self.providers and name not in self.providers:
                raise InvalidRequestError(
                    f"options of {name} were given ({', '.join(options)}), but it is not among the providers {', '.join(self.providers)}"
                )
            find_provider(name).check_options(options)
        if self.profile is not None and not Path(self.profile).absolute().parent.is_dir():
            raise InvalidRequestError(f"profile is {self.profile!r}, but there is no folder {Path(self.profile).parent}; make it first")

    @property
    def provider_options(self) -> Mapping[str, Mapping[str, str]]:
        """The options of each provider that was given any."""
        given = {name: getattr(self, name) for name in PROVIDERS if name != "cpu"}
        return {name: options for name, options in given.items() if options}
