"""UPerNet: the blocks that it reads, learning rates by layer, and resumed runs."""

import os
import signal
from pathlib import Path

import pytest
import torch
from transformers.models.upernet.modeling_upernet import UperNetConfig, UperNetHead

from semmae.core import optim
from semmae.core.compute import ComputeConfig
from semmae.core.distributed import World
from semmae.data.dataset import Reader
from semmae.evaluation.segmentation import upernet
from semmae.evaluation.segmentation.transforms import SegmentationCropConfig, TrainCrop
from semmae.models import vit
from semmae.runs.run import Run

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
COMPUTE = ComputeConfig(device="cpu", precision="fp32", compile=False, workers=0)
CONFIG = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 4, "num_heads": 2}
RECIPE = upernet.UPerNetConfig(
    width=8, auxiliary_width=4, auxiliary_weight=0.4, epochs=3, batch_size=8, base_lr=0.1, min_lr=0.0,
    warmup_epochs=0.5, power=1.0, weight_decay=0.05, betas=(0.9, 0.999), layer_decay=0.5, drop_path=0.2,
)  # fmt: skip


def fresh(seed: int = 0) -> upernet.UPerNet:
    torch.manual_seed(seed)
    return upernet.build_upernet(RECIPE, vit.build(CONFIG), CONFIG, num_classes=9, seed=seed)


def test_four_evenly_spaced_blocks_are_read():
    assert upernet.block_indices(12) == [3, 5, 7, 11]  # BEiT, MAE and iBOT, base
    assert upernet.block_indices(24) == [7, 11, 15, 23]  # large
    assert upernet.block_indices(4) == [0, 1, 2, 3]
    assert upernet.block_indices(1) == [0, 0, 0, 0]


@pytest.mark.parametrize("size", [(32, 32), (40, 56)])
def test_the_pyramid_has_4_2_1_and_half_times_the_patch_grid(size):
    model = fresh().eval()
    images = torch.randn(2, 3, *size)
    height, width = size[0] // 8, size[1] // 8
    shapes = [tuple(level.shape) for level in model.features(images)]
    grids = [(4 * height, 4 * width), (2 * height, 2 * width), (height, width), (-(-height // 2), -(-width // 2))]
    assert shapes == [(2, 16, *grid) for grid in grids]
    logits, nothing = model(images)
    assert logits.shape == (2, 9, 4 * height, 4 * width)
    assert nothing is None
    assert model.train()(images)[1].shape == (2, 9, height, width)


def test_a_level_has_the_tokens_of_its_block():
    model, images = fresh().eval(), torch.randn(2, 3, 32, 32)
    tokens, found = vit.embed(model.encoder, images), []
    for block in model.encoder.blocks:
        tokens = block(tokens)
        found.append(tokens[:, 1:].transpose(1, 2).reshape(2, 16, 4, 4))
    third, last = model.features(images)[2:]
    torch.testing.assert_close(third, found[2])
    torch.testing.assert_close(last, torch.nn.functional.max_pool2d(found[3], 2))


def test_the_encoder_is_pretrained_and_the_head_is_that_of_transformers():
    pretrained = vit.build(CONFIG)
    model = upernet.build_upernet(RECIPE, pretrained.requires_grad_(False), CONFIG, num_classes=9, seed=0)
    for name, value in pretrained.state_dict().items():
        torch.testing.assert_close(model.encoder.state_dict()[name], value)
    reference = UperNetHead(UperNetConfig(hidden_size=8, num_labels=9), in_channels=[16] * 4)
    assert {k: v.shape for k, v in reference.state_dict().items()} == {
        k: v.shape for k, v in model.head.state_dict().items()
    }
    frozen = {name for name, value in model.named_parameters() if not value.requires_grad}
    assert frozen == {"encoder.pos_embed", "encoder.norm.weight", "encoder.norm.bias"}


def test_every_trainable_parameter_has_a_gradient_and_lower_layers_have_smaller_rates():
    model = fresh()
    groups = upernet.parameter_groups(model, weight_decay=0.05, layer_decay=0.5)
    share = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert set(share) == {id(p) for p in trainable.values()}
    for name, p in trainable.items():
        if name.startswith("encoder.blocks."):
            assert share[id(p)] == 0.5 ** (4 - int(name.split(".")[2])), name
        else:
            assert share[id(p)] == (0.5**5 if name.startswith("encoder.") else 1), name
        assert decay[id(p)] == (0 if p.ndim < 2 or name == "encoder.cls_token" else 0.05), name
    images = torch.randn(2, 3, 32, 32)
    logits, auxiliary = model.train()(images)
    (logits.square().mean() + auxiliary.square().mean()).backward()
    assert all(p.grad is not None for p in trainable.values())


def test_the_rate_rises_linearly_and_falls_by_a_power():
    rates = [optim.warmup_poly(i, steps=101, warmup=10, peak=2.0, end=0.5, power=2.0) for i in range(101)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10] == 2.0
    assert rates[-1] == 0.5
    assert rates[55] == pytest.approx(0.5 + 1.5 * 0.25)


def test_a_resumed_run_ends_with_the_same_bits(toy_dataset: Path, tmp_path: Path):
    reader = Reader(toy_dataset, "train")
    crops = TrainCrop(0, SegmentationCropConfig((0.75, 1.5), 0.5), short_side=32, side=32)

    def learn(name: str, end: int | None, ending: str = "") -> tuple[upernet.UPerNet, list[dict[str, float]]]:
        """Start or resume a run; at the step `end` a signal stops it, or an exception ends it."""
        model, seen = fresh(), 0
        with Run(name, ALONE, out=tmp_path / name, params=RECIPE, inputs=[], checkpoint_minutes=60) as run:
            record = run.record

            def counted(**values: object) -> None:
                nonlocal seen
                seen += 1
                if seen == end and ending == "stop":
                    os.kill(os.getpid(), signal.SIGTERM)
                elif seen == end:
                    raise InterruptedError
                record(**values)

            run.record = counted
            upernet.finetune_upernet(RECIPE, model, reader, crops=crops, compute=COMPUTE, world=ALONE, run=run)
        return model, run.history

    model, history = learn("whole", None)
    assert history[-1]["loss"] < history[0]["loss"]
    for ending, end, error in (("stop", 8, SystemExit), ("kill", 12, InterruptedError)):
        with pytest.raises(error):
            learn(ending, end, ending)
        again, its_history = learn(ending, None)
        assert its_history == history
        assert all(
            torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
        )
