"""ComputeConfig: the precision that `auto` stands for, and what is compiled."""

from pathlib import Path

import pytest
import torch

from semmae.core import compute
from semmae.core.compute import ComputeConfig
from semmae.core.config import load_config

PARAMS = "stage:\n  compute: {{device: {device}, precision: {precision}, compile: false, workers: 0}}\n"


def load(folder: Path, *, precision: str, device: str = "cpu") -> ComputeConfig:
    """Write a params.yaml with these values and load it."""
    (folder / "params.yaml").write_text(PARAMS.format(device=device, precision=precision))
    return load_config(ComputeConfig, "stage", "compute", file=folder / "params.yaml")


@pytest.mark.parametrize(
    ("machine", "has_kernels", "has_instructions", "expected"),
    [
        ("x86_64", True, True, "bf16"),
        ("x86_64", True, False, "fp32"),  # AVX-512 without bfloat16
        ("x86_64", False, False, "fp32"),
        ("aarch64", True, False, "bf16"),
        ("aarch64", False, False, "fp32"),
    ],
)
def test_auto_is_bf16_only_where_a_cpu_has_bfloat16_instructions(
    tmp_path, monkeypatch, machine, has_kernels, has_instructions, expected
):
    monkeypatch.setattr(compute.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_kernels)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_instructions)
    assert load(tmp_path, precision="auto").precision == expected


def test_auto_is_fp32_where_torch_was_built_without_mkldnn(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "ops", object())
    assert load(tmp_path, precision="auto").precision == "fp32"


@pytest.mark.parametrize(("is_supported", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_bf16_only_where_a_gpu_needs_no_emulation(tmp_path, monkeypatch, is_supported, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: is_supported and not including_emulation
    )
    assert load(tmp_path, precision="auto", device="auto").precision == expected
    assert load(tmp_path, precision="auto", device="cuda").precision == expected


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_precision_that_is_named_is_kept(tmp_path, monkeypatch, precision):
    monkeypatch.setattr(compute, "native_precision", lambda device: pytest.fail("asked for the native precision"))
    assert load(tmp_path, precision=precision).precision == precision


def test_an_unknown_precision_is_an_error_that_lists_the_known_ones(tmp_path):
    with pytest.raises(
        ValueError, match=r"stage\.compute\.precision is 'fp16'; expected one of 'auto', 'bf16' or 'fp32'"
    ):
        load(tmp_path, precision="fp16")


def test_the_compile_mode_is_passed_to_modules_and_not_to_functions(monkeypatch):
    function_calls, module_modes = [], []
    monkeypatch.setattr(torch, "compile", lambda function: function_calls.append(function) or function)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, mode: module_modes.append(mode))
    for value in (False, True, "reduce-overhead"):
        options = ComputeConfig(device="cpu", precision="fp32", compile=value, workers=0)
        options.compile_in_place(torch.nn.Identity())
        options.compile_function(torch.relu)
    assert module_modes == [None, "reduce-overhead"]
    assert function_calls == [torch.relu, torch.relu]
