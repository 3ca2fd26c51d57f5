"""Check that a teacher from a published file gives the tokens of the original network.

Each test writes the weights of a small random network, with the keys and wrappers that the authors use.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from semmae.core.digests import file_digest
from semmae.exchange import promotion
from semmae.models import teacher, vit

IMAGES = torch.randint(0, 256, (2, 3, 56, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
DINO, IBOT = "vit_small_patch16_224.dino", "vit_small_patch16_224"
DINOV2, DINOV2_REG = "vit_small_patch14_dinov2.lvd142m", "vit_small_patch14_reg4_dinov2.lvd142m"
DINOV3, DINOV3_QKVB = "vit_small_patch16_dinov3.lvd1689m", "vit_small_patch16_dinov3_qkvb.lvd1689m"
KNOWN = {"mean": vit.MEAN, "std": vit.STD}
State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shrink timm's architectures to two narrow blocks, under their own names."""
    monkeypatch.setattr(timm, "create_model", partial(timm.create_model, embed_dim=24, depth=2, num_heads=2))


def random_network(name: str, img_size: int = 64) -> vit.Network:
    """Create timm's network with random weights in all tensors; initial values of 0 or 1 could hide a mistake."""
    network = teacher.create_network(name, img_size).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return network


def wrapped(state: State, prefix: str, heads: State) -> State:
    """Return a backbone and a projection head under the names of DINO's MultiCropWrapper."""
    return {f"{prefix}backbone.{key}": value for key, value in state.items()} | {
        f"{prefix}head.{key}": value for key, value in heads.items()
    }


def training_file(state: State, **more: Any) -> dict[str, Any]:
    """Return the content of a `checkpoint.pth` of DINO and iBOT: networks, optimizer with NumPy scalars, arguments."""
    head = {"mlp.0.weight": torch.ones(3, 24), "last_layer.weight_g": torch.ones(8, 1)}
    other = {key: value + 1 for key, value in state.items()} | {"masked_embed": torch.ones(1, 24)}
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(2))])
    optimizer.param_groups[0].update(lr=np.linspace(0, 1, 5)[2], weight_decay=np.float64(0.4))
    return {
        "student": wrapped(other, "module.", head), "teacher": wrapped(state, "", head),
        "optimizer": optimizer.state_dict(), "epoch": 800,
        "args": argparse.Namespace(arch="vit_small", local_crops_scale=(0.05, 0.25), output_dir=Path("logs")),
        "fp16_scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 12}, **more,
    }  # fmt: skip


def dinov2_as_published(state: State) -> State:
    """Convert weights to Meta's layout: add a mask token and, with registers, a position of the class token."""
    state = state | {"mask_token": torch.ones(1, 24)}
    if "reg_token" in state:
        state["register_tokens"] = state.pop("reg_token")
        position = torch.full((1, 1, 24), 0.5)
        state["cls_token"] = state["cls_token"] - position
        state["pos_embed"] = torch.cat([position, state["pos_embed"]], dim=1)
    return state


def dinov3_as_published(state: State) -> State:
    """Convert weights to Meta's layout: storage tokens, one bias for q, k and v with its mask, and rotary periods."""
    renamed = {"reg_token": "storage_tokens", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
    out = {"mask_token": torch.ones(1, 24), "rope_embed.periods": torch.ones(3)}
    for key, value in state.items():
        for old, new in renamed.items():
            key = key.replace(old, new)
        if not key.endswith(("q_bias", "v_bias")):
            out[key] = value
    for i in range(2):
        q, v = (state.get(f"blocks.{i}.attn.{name}_bias", torch.zeros(24)) for name in "qv")
        out[f"blocks.{i}.attn.qkv.bias"] = torch.cat([q, torch.zeros(24), v])
        out[f"blocks.{i}.attn.qkv.bias_mask"] = torch.cat([torch.ones(24), torch.zeros(24), torch.ones(24)])
    return out


LAYOUTS: dict[str, tuple[str, Callable[[State], Any]]] = {
    "dino_deitsmall16_pretrain": (DINO, lambda state: state),
    "dino_deitsmall16_pretrain_full_checkpoint": (
        DINO, lambda state: training_file(state, dino_loss={"center": torch.zeros(1, 8)}),
    ),
    "ibot checkpoint": (
        IBOT, lambda state: training_file(state, ibot_loss={"center2": torch.zeros(1, 1, 8)}),
    ),
    "ibot checkpoint_teacher": (IBOT, lambda state: {"state_dict": state}),
    "dinov2 of timm": (DINOV2, lambda state: state),
    "dinov2_vits14_pretrain": (DINOV2, dinov2_as_published),
    "dinov2 with registers of timm": (DINOV2_REG, lambda state: state),
    "dinov2_vits14_reg4_pretrain": (DINOV2_REG, dinov2_as_published),
    "dinov3 of timm": (DINOV3, lambda state: state),
    "dinov3_vits16_pretrain": (DINOV3, dinov3_as_published),
    "dinov3_vits16_pretrain with biases": (DINOV3_QKVB, dinov3_as_published),
}  # fmt: skip


def timm_attention(network: vit.Network, x: Tensor) -> Tensor:
    """Return the last block's attention (b, heads, t, t) as timm computes it."""
    captured: dict[str, Tensor] = {}
    attn: Any = network.blocks[-1].attn
    attn.fused_attn = False
    with attn.attn_drop.register_forward_hook(lambda module, inputs, output: captured.update(weights=output)):
        network.forward_features(x)
    return captured["weights"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_published_file_gives_its_networks_tokens_and_attention(layout, tmp_path):
    name, write = LAYOUTS[layout]
    size = 56 if "patch14" in name else 64
    original = random_network(name, size)
    torch.save(write({key: value.clone() for key, value in original.state_dict().items()}), tmp_path / "file.pth")
    sha256 = file_digest(tmp_path / "file.pth")
    network, config = teacher.from_timm(name, img_size=size, checkpoint=tmp_path / "file.pth", sha256=sha256)
    assert config["class_token"]
    teacher.save_teacher(tmp_path / "frozen", network, config)
    loaded = teacher.load_teacher(tmp_path / "frozen")
    images = nn.functional.interpolate(IMAGES, size=(size, size))
    tokens, x = loaded.encode(images), vit.normalize(images, tuple(config["mean"]), tuple(config["std"]))
    expected, prefix = original.forward_features(x), original.num_prefix_tokens
    torch.testing.assert_close(tokens.cls, expected[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokens.patch, expected[:, prefix:], rtol=1e-4, atol=1e-5)
    heads = timm_attention(original, x)[:, :, 0, prefix:]
    attention = heads.mean(1)
    assert prefix == (5 if "reg" in name or "dinov3" in name else 1)
    assert (attention.sum(1) < 0.99).all()  # without the attention to the class token and registers
    torch.testing.assert_close(tokens.attention, attention / attention.sum(1, keepdim=True), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokens.heads, heads / heads.sum(2, keepdim=True), rtol=1e-4, atol=1e-5)


def with_head(state: State) -> State:
    """Add the projection head of iBOT to a backbone."""
    return state | {"head.mlp.0.weight": torch.ones(3, 24), "head.last_layer.weight_g": torch.ones(8, 1)}


def supervised(state: State) -> State:
    return state | {"head.weight": torch.ones(5, 24), "head.bias": torch.ones(5)}


IMAGENET, HALVES = (vit.MEAN, vit.STD), ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("name", "write", "expected"),
    [
        (IBOT, lambda state: {"state_dict": state}, IMAGENET),
        (IBOT, lambda state: {"state_dict": with_head(state)}, IMAGENET),
        (IBOT, training_file, IMAGENET),
        (IBOT, dict, IMAGENET),  # the layout of DINO's published backbones
        (DINO, dict, IMAGENET),
        ("vit_base_patch16_224", lambda state: {"state_dict": state}, IMAGENET),
        ("vit_large_patch16_224", lambda state: {"state_dict": state}, IMAGENET),
        (IBOT, supervised, HALVES),  # weights of timm
        (IBOT, lambda state: {"state_dict": supervised(state)}, HALVES),
        (f"{IBOT}.augreg_in21k", dict, HALVES),  # the tag of the name decides
    ],
)  # fmt: skip
def test_pixels_are_normalized_as_by_the_authors(name, write, expected, tmp_path):
    state = {key: value.clone() for key, value in random_network(name).state_dict().items()}
    torch.save(write(state), tmp_path / "file.pth")
    _, config = teacher.from_timm(name, img_size=64, checkpoint=tmp_path / "file.pth")
    assert (tuple(config["mean"]), tuple(config["std"])) == expected


def test_a_clip_backbone_is_not_normalized_as_dino(tmp_path):
    name = "vit_base_patch16_clip_224"
    torch.save(random_network(name).state_dict(), tmp_path / "clip.pth")
    _, config = teacher.from_timm(name, img_size=64, checkpoint=tmp_path / "clip.pth")
    assert tuple(config["mean"]) == timm.data.OPENAI_CLIP_MEAN


def test_positions_are_resampled_to_the_teachers_size(tmp_path):
    original = random_network(DINO, 64)
    save_file(original.state_dict(), tmp_path / "file.safetensors")
    network, _ = teacher.from_timm(DINO, img_size=96, checkpoint=tmp_path / "file.safetensors")
    expected = resample_abs_pos_embed(original.pos_embed, new_size=[6, 6], num_prefix_tokens=1)
    torch.testing.assert_close(network.pos_embed, expected)


def test_a_teacher_with_rotary_positions_accepts_other_sizes(tmp_path):
    torch.save(random_network(DINOV3).state_dict(), tmp_path / "file.pth")
    network, config = teacher.from_timm(DINOV3, img_size=64, checkpoint=tmp_path / "file.pth")
    tokens = teacher.Teacher(network, config, "").encode(torch.zeros(1, 3, 96, 32, dtype=torch.uint8))
    assert tokens.patch.shape == (1, 12, 24)


def fixed(state: State) -> State:
    """Use sine-cosine positions, as in the published encoders of MAE."""
    return state | {"pos_embed": vit.sincos_positions(4, 24)}


def with_decoder(state: State) -> State:
    """Add parts of a decoder, as in the checkpoints of MAE's training script."""
    return state | {"mask_token": torch.ones(1, 1, 16), "decoder_embed.weight": torch.ones(16, 24)}


@pytest.mark.parametrize("layout", [fixed, with_decoder])
def test_mae_has_no_trained_class_token_and_the_normalization_of_its_authors(layout, tmp_path):
    torch.save({"model": layout(random_network("vit_base_patch16_224.mae").state_dict())}, tmp_path / "mae.pth")
    _, config = teacher.from_timm("vit_base_patch16_224.mae", img_size=64, checkpoint=tmp_path / "mae.pth")
    assert not config["class_token"]
    assert (tuple(config["mean"]), tuple(config["std"])) == (vit.MEAN, vit.STD)


@pytest.mark.parametrize("layout", [fixed, with_decoder])
@pytest.mark.parametrize(
    ("name", "instead"),
    [
        # timm's config of this name has another mean and deviation.
        ("vit_base_patch16_224", "set teacher.model to vit_base_patch16_224.mae"),
        ("vit_base_patch16_224.dino", "set teacher.model to vit_base_patch16_224.mae"),
        ("vit_small_patch16_224", "import them .*teacher.source to semmae"),  # no published MAE has this size
    ],
)
def test_weights_of_mae_under_another_name_give_an_error_with_the_remedy(name, instead, layout, tmp_path):
    torch.save({"model": layout(random_network(name).state_dict())}, tmp_path / "mae.pth")
    with pytest.raises(ValueError, match=f"mae.pth holds weights of MAE, .*{name}'; {instead}$") as refused:
        teacher.from_timm(name, img_size=64, checkpoint=tmp_path / "mae.pth")
    assert "\n" not in str(refused.value)


def shallow(state: State) -> State:
    return {key: value for key, value in state.items() if not key.startswith("blocks.1.")}


def widened(state: State) -> State:
    return state | {"cls_token": torch.ones(1, 1, 32)}


def biased(state: State) -> State:
    return dinov3_as_published(state) | {"blocks.1.attn.qkv.bias": torch.ones(72)}


@pytest.mark.parametrize(
    ("name", "source", "change", "reason"),
    [
        (DINO, DINO, shallow, "it lacks blocks.1.norm1.weight and 11 more"),
        (DINO, DINO, widened, "its cls_token is 1 x 1 x 32, expected 1 x 1 x 24"),
        (DINO, DINO, lambda s: s | {"rel_pos": torch.ones(1)}, "it has rel_pos, which is not expected"),
        (DINO, "vit_small_patch8_224.dino", dict, "its patches are 8 pixels wide, expected 16"),
        (DINO, DINOV2_REG, dict, "its patches are 14 pixels wide, expected 16"),
        (DINO, DINOV3, dict, "it lacks pos_embed"),
        (DINO, DINOV3, dinov3_as_published, "it lacks pos_embed"),
        (DINOV3, DINO, dict, "it lacks reg_token"),
        (DINOV3, DINOV3, biased, "has biases of queries and values"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_give_an_error_of_one_line(name, source, change, reason, tmp_path):
    file = tmp_path / "file.pth"
    torch.save(change(random_network(source, 112 if "patch14" in source else 64).state_dict()), file)
    with pytest.raises(ValueError, match=reason) as refused:
        teacher.from_timm(name, img_size=64, checkpoint=file)
    assert str(refused.value).startswith(f"{file} ")
    assert name.split(".")[0] in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_teacher_from_an_encoder_gives_its_tokens(tmp_path):
    config = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    encoder = vit.build(config).eval()
    vit.save(tmp_path, encoder, config | KNOWN | {"params": {}})
    file = tmp_path / "encoder.safetensors"
    sha256 = file_digest(file)
    for size in (32, 48):
        network, config = teacher.from_encoder(file, sha256, img_size=size)
        images = nn.functional.interpolate(IMAGES, size=(size, size))
        tokens = teacher.Teacher(network, config, "").encode(images)
        expected = encoder.forward_features(vit.normalize(images))[:, 1:]
        torch.testing.assert_close(tokens.patch, expected)
        torch.testing.assert_close(tokens.cls, expected.mean(1))
    with pytest.raises(ValueError, match="img_size is 36"):
        teacher.from_encoder(file, sha256, img_size=36)
    with pytest.raises(ValueError, match=r"but params\.yaml has 0000"):
        teacher.from_encoder(file, "0000", img_size=32)
    with pytest.raises(ValueError, match="there is no file"):
        teacher.from_encoder(tmp_path / "none.safetensors", sha256, img_size=32)


@pytest.mark.parametrize("trained", [True, False])
def test_a_promoted_teacher_keeps_its_class_token(trained, tmp_path):
    config = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    teacher.save_teacher(tmp_path / "ibot", vit.build(config), config | KNOWN | {"class_token": trained, "params": {}})
    file = promotion.promote(tmp_path / "ibot", "teacher", tmp_path / "encoders")
    teacher.save_teacher(tmp_path / "next", *teacher.from_encoder(file, file.parent.name, img_size=32))
    images = nn.functional.interpolate(IMAGES, size=(32, 32))
    before, after = (teacher.load_teacher(tmp_path / name) for name in ("ibot", "next"))
    torch.testing.assert_close(after.encode(images), before.encode(images))
    assert after.class_token is trained
