"""The schema of `compute` in params.yaml: the device of a stage, its precision, compilation and workers."""

import platform
from collections.abc import Callable
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

import torch
from pydantic import BeforeValidator, NonNegativeInt, ValidationInfo
from pydantic.dataclasses import dataclass
from torch import nn

from semmae.core.config import STRICT
from semmae.core.distributed import Device, Precision

P = ParamSpec("P")
R = TypeVar("R")


def native_precision(device: Device) -> Precision:
    """Return bf16 if the device has bfloat16 instructions, else fp32.

    A CPU without these instructions emulates them: a bf16 step then takes many times as long as an fp32 step.
    """
    if device != "cpu" and torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    has_kernels = getattr(getattr(torch.ops, "mkldnn", None), "_is_mkldnn_bf16_supported", None)
    if has_kernels is None or not has_kernels():
        return "fp32"
    # On x86, the kernels run on every CPU with AVX-512. They emulate bfloat16 instructions, which most of these lack.
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    return "bf16" if not is_x86 or torch.cpu._is_avx512_bf16_supported() else "fp32"


def _resolve_precision(precision: Any, info: ValidationInfo) -> Any:
    if precision == "auto":
        return native_precision(info.data.get("device", "auto"))
    if precision not in ("bf16", "fp32"):
        raise ValueError("expected one of 'auto', 'bf16' or 'fp32'")
    return precision


@dataclass(frozen=True, config=STRICT)
class ComputeConfig:
    """Where and how fast a stage computes. Only `precision` changes results.

    `precision: auto` is resolved when params.yaml is loaded, so `precision` of an instance is bf16 or fp32.
    """

    device: Device
    precision: Annotated[Precision, BeforeValidator(_resolve_precision)]
    compile: Literal[False, True, "reduce-overhead"]  # reduce-overhead: trained modules use CUDA graphs
    workers: NonNegativeInt  # processes that load images; 0: the main process loads them between the steps

    def compile_in_place(self, module: nn.Module) -> None:
        """Compile a trained module, if `compile` is set."""
        if self.compile:
            module.compile(mode=None if self.compile is True else self.compile)

    def compile_function(self, function: Callable[P, R]) -> Callable[P, R]:
        """Return the forward pass of a frozen network, compiled if `compile` is set.

        It never uses CUDA graphs, because a graph overwrites its previous output and callers keep outputs.
        """
        return torch.compile(function) if self.compile else function
