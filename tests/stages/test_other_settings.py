"""Settings that the toy project does not use, run through their stages."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from semmae.core import compute, optim
from semmae.core.digests import file_digest
from semmae.core.model_files import model_digest
from semmae.data import epoch_order as order
from semmae.data.dataset import Reader
from semmae.models import mae, teacher
from semmae.parts import part_maps, part_methods
from semmae.parts.part_method import PartMethod
from tests.project import Project, call


def mapped() -> PartMethod:
    """Make the part maps of the project in this folder, read them, and return the part method."""
    call("part_maps")
    learned, teacher_digest = part_methods.load_parts(Path("data/parts")), model_digest(Path("data/teacher"), "teacher")
    maps = part_maps.join(
        Path("data/part_maps/toy"), Reader(Path("data/shards/toy")), teacher=teacher_digest, parts=learned.digest
    )
    assert maps.grid == learned.grid
    found = np.unique(maps.channels["part_map"])
    assert len(found) > 1
    assert set(found) <= set(range(learned.num_labels))
    return learned


@pytest.mark.parametrize(
    ("key", "value", "config"),
    [
        ("parts.method", "kmeans", {"method": "kmeans", "temperature": 0.1, "background": False}),
        ("parts.method", "paper", {"method": "paper", "patch_size": 8, "background": True}),
        ("parts.learned.keys", "content", {"method": "learned", "keys": "content", "background": True}),
        ("parts.learned.keys", "position", {"method": "learned", "keys": "position", "background": True}),
    ],
)
def test_other_part_methods_give_part_maps(inside: Project, key: str, value: Any, config: dict[str, Any]):
    inside.set(key, value)
    call("parts")
    learned = mapped()
    assert learned.config.items() >= config.items()
    assert learned.background == (3 if learned.config["background"] else None)


def test_decoding_a_fraction_of_the_masked_patches_lowers_the_loss(inside: Project):
    whole = json.loads(Path("data/pretrain/history.json").read_text())
    inside.set("pretrain.recipe.decode_fraction", 0.5)
    call("pretrain")
    found = json.loads(Path("data/pretrain/history.json").read_text())
    assert found[-1]["loss"] < found[0]["loss"]
    assert found[0]["loss"] == pytest.approx(whole[0]["loss"], rel=0.1)  # similar, but over fewer patches
    assert found[0]["loss"] != whole[0]["loss"]


@pytest.mark.parametrize(
    ("stage", "section"),
    [
        ("teacher", "teacher.mae.recipe"),
        ("parts", "parts.paper"),
        ("pretrain", "pretrain.recipe"),
        ("attentive", "attentive.protocol"),
        ("finetune", "finetune.protocol.recipe"),
        ("segment", "segment.protocol"),
    ],
)
def test_stages_that_train_pass_shuffle_shards_to_the_order_of_an_epoch(
    inside: Project, monkeypatch: pytest.MonkeyPatch, stage: str, section: str
):
    inside.set(f"{section}.shuffle_shards", 2)
    inside.set("parts.method", "paper")
    epoch_order, found = order.epoch_order, []

    def noted(*arguments: Any, **keywords: Any) -> np.ndarray:
        found.append((keywords["shuffle_shards"], epoch_order(*arguments, **keywords)))
        return found[-1][1]

    monkeypatch.setattr(order, "epoch_order", noted)
    call(stage, *(["toy"] if "protocol" in section else []))
    assert {shuffle_shards for shuffle_shards, _ in found} == {2}


def test_the_resolution_grows_during_pretraining(inside: Project, monkeypatch: pytest.MonkeyPatch):
    inside.set("pretrain.recipe.resolution", {"start": 16, "step": 8, "until": 0.7})
    inside.set("pretrain.online_eval.every_epochs", 0)
    seen = []
    forward = mae.MAE.forward

    def counted(model: mae.MAE, images: torch.Tensor, mask: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append((images.shape[-1], mask.shape[1]))
        assert mask.sum(1).tolist() == [round(0.75 * mask.shape[1])] * len(mask)
        return forward(model, images, mask, *rest)

    monkeypatch.setattr(mae.MAE, "forward", counted)
    call("pretrain")
    assert list(dict.fromkeys(seen)) == [(16, 4), (24, 9), (32, 16)]
    found = json.loads(Path("data/pretrain/history.json").read_text())
    assert len(found) == 6
    assert found[-1]["loss"] < found[0]["loss"]


def test_a_step_that_is_not_finite_in_bf16_is_retried_in_fp32(
    inside: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A number is added that is finite in fp32 and infinite in bf16: the bf16 run must end as the fp32 run does."""
    inside.set("pretrain.recipe.epochs", 1)
    call("pretrain")
    expected = file_digest(Path("data/pretrain/encoder.safetensors"))
    capsys.readouterr()
    encode = mae.MAE.encode

    def far(model: mae.MAE, *arguments: Any) -> torch.Tensor:
        precision = torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32
        return encode(model, *arguments) + 0 * torch.tensor(3.4e38, dtype=precision).float()

    monkeypatch.setattr(mae.MAE, "encode", far)
    inside.set("pretrain.compute.precision", "bf16")
    call("pretrain")
    messages = [line for line in capsys.readouterr().err.splitlines() if "retrying" in line]
    assert messages == [f"pretrain: the loss is nan at step {step}; retrying it in fp32" for step in range(4)]
    assert file_digest(Path("data/pretrain/encoder.safetensors")) == expected


def test_a_gradient_that_is_not_finite_changes_no_weight(
    inside: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The gradient is nan at the last step of the second epoch. The run fails, and resumes from the first epoch."""
    inside.set("pretrain.recipe.epochs", 3)
    clip, steps = optim.clip, itertools.count()

    def broken(model: mae.MAE, max_norm: float | None) -> torch.Tensor:
        if next(steps) == 7:
            model.mask_token.grad.fill_(torch.nan)
        return clip(model, max_norm)

    monkeypatch.setattr(optim, "clip", broken)
    with pytest.raises(SystemExit):
        call("pretrain")
    message = capsys.readouterr().err
    assert "error: pretrain: the gradient is nan at step 7 on rank 0; its samples: " in message
    (saved,) = Path(inside.root, "state/runs").glob("*/step-*")
    assert saved.name == "step-000000004"
    call("pretrain")
    assert all(torch.isfinite(value).all() for value in load_file("data/pretrain/encoder.safetensors").values())


def test_a_gradient_is_clipped_to_the_maximum_norm(inside: Project, monkeypatch: pytest.MonkeyPatch):
    inside.set("pretrain.recipe.clip_grad", 0.01)
    found, step = [], torch.optim.AdamW.step

    def measured(optimizer: torch.optim.AdamW, *arguments: Any) -> Any:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        found.append(float(torch.nn.utils.get_total_norm(gradients)))
        return step(optimizer, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", measured)
    call("pretrain")
    assert found == pytest.approx([0.01] * len(found), rel=1e-3)


def test_a_checkpoint_in_the_layout_of_timm_can_be_the_teacher(inside: Project):
    torch.manual_seed(0)
    published = timm.create_model("vit_tiny_patch16_224")
    file = Path("data/raw/tiny.safetensors")
    save_file(published.state_dict(), file)
    inside.set("teacher.source", "timm")
    inside.set("teacher.model", "vit_tiny_patch16_224")
    inside.set("teacher.checkpoint", {"path": file.name, "sha256": file_digest(file)})
    call("teacher")
    frozen_teacher = teacher.load_teacher(Path("data/teacher"))
    assert frozen_teacher.grid(32) == (2, 2)  # too few positions for a center: no foreground
    inside.set("parts.learned.foreground", None)
    for name, value in published.blocks.state_dict().items():
        assert torch.equal(frozen_teacher.network.blocks.state_dict()[name], value)
    call("parts")
    assert mapped().config.items() >= {"keys": "position", "embed_dim": 192, "grid": [2, 2]}.items()


@pytest.mark.parametrize("stage", ["knn", "linear", "part_scores"])
def test_an_evaluation_compiles_its_frozen_networks(inside: Project, monkeypatch: pytest.MonkeyPatch, stage: str):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function: compiled.append(function) or function)
    inside.set(f"{stage}.protocol.compute.compile", True)
    call(stage, "toy")
    assert compiled


def test_part_maps_made_with_precision_auto_are_stored_under_the_resolved_precision(
    inside: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    inside.set("part_maps.compute.precision", "auto")
    shards = len(json.loads(Path("data/shards/toy/shards.json").read_text())["shards"])
    for precision, missing in (("fp32", 0), ("bf16", shards), ("bf16", 0)):
        monkeypatch.setattr(compute, "native_precision", lambda device, precision=precision: precision)
        call("part_maps")
        assert f"{missing} of {shards} shards to compute" in capsys.readouterr().out
