"""Compare forward passes with those of timm, and load teachers from checkpoints."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from semmae.models import teacher, vit

CONFIG = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


@pytest.fixture
def network():
    torch.manual_seed(0)
    return vit.build(CONFIG).eval()


def test_tokens_equal_timms_tokens(network):
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(vit.encode_tokens(network, images), network.forward_features(images))


def test_kept_patches_keep_their_positions(network):
    images, ids = torch.randn(2, 3, 32, 32), torch.tensor([[0, 5, 9], [3, 4, 15]])
    everything = vit.embed(network, images)
    kept = vit.embed(network, images, ids)
    assert torch.equal(kept[:, 0], everything[:, 0])
    for row in range(2):
        assert torch.equal(kept[row, 1:], everything[row, 1 + ids[row]])


def test_class_attention_is_the_last_blocks_softmax(network):
    images = torch.randn(2, 3, 32, 32)
    captured = {}
    attn = network.blocks[-1].attn
    attn.fused_attn = False
    attn.attn_drop.register_forward_hook(lambda module, inputs, output: captured.update(weights=output))
    tokens, attention = vit.class_attention(network, images)
    torch.testing.assert_close(attention, captured["weights"][:, :, 0, 1:])
    torch.testing.assert_close(tokens, vit.encode_tokens(network, images))


def test_positions_of_different_patches_differ(network):
    table = network.pos_embed[0, 1:]
    distance = torch.cdist(table, table) + torch.eye(16) * 100
    assert distance.min() > 0.1
    assert not network.pos_embed.requires_grad


@pytest.mark.parametrize(("change", "word"), [({"img_size": 30}, "img_size"), ({"embed_dim": 36}, "embed_dim")])
def test_impossible_shapes_are_refused(change, word):
    with pytest.raises(ValueError, match=word):
        vit.build(CONFIG | change)


def test_teacher_round_trip(network, tmp_path):
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    config = CONFIG | {"class_token": True, "mean": vit.MEAN, "std": vit.STD}
    teacher.save_teacher(tmp_path, network, config)
    loaded = teacher.load_teacher(tmp_path)
    tokens = loaded.encode(images)
    expected = network.forward_features(vit.normalize(images))
    torch.testing.assert_close(tokens.cls, expected[:, 0])
    torch.testing.assert_close(tokens.patch, expected[:, 1:])
    torch.testing.assert_close(tokens.attention.sum(1), torch.ones(2))
    assert not any(p.requires_grad for p in loaded.parameters())


def test_without_a_trained_class_token_the_patches_are_averaged(network, tmp_path):
    teacher.save_teacher(tmp_path, network, CONFIG | {"class_token": False, "mean": vit.MEAN, "std": vit.STD})
    tokens = teacher.load_teacher(tmp_path).encode(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8))
    torch.testing.assert_close(tokens.cls, tokens.patch.mean(1))


def test_damaged_weights_are_refused(network, tmp_path):
    teacher.save_teacher(tmp_path, network, CONFIG | {"class_token": True, "mean": vit.MEAN, "std": vit.STD})
    weights = bytearray((tmp_path / "teacher.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "teacher.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match="does not match the sha256"):
        teacher.load_teacher(tmp_path)


@pytest.mark.parametrize("form", ["safetensors", "pth"])
def test_positions_of_a_timm_checkpoint_are_resampled(tmp_path, form):
    published = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    file = tmp_path / f"tiny.{form}"
    save_file(published.state_dict(), file) if form == "safetensors" else torch.save(published.state_dict(), file)
    network, config = teacher.from_timm("vit_tiny_patch16_224", img_size=96, checkpoint=file)
    assert network.pos_embed.shape == (1, 1 + 36, 192)
    assert torch.equal(network.blocks[3].mlp.fc1.weight, published.blocks[3].mlp.fc1.weight)
    teacher.save_teacher(tmp_path / "frozen", network, config)
    tokens = teacher.load_teacher(tmp_path / "frozen").encode(torch.zeros(1, 3, 96, 96, dtype=torch.uint8))
    assert tokens.patch.shape == (1, 36, 192)


def test_other_weights_and_names_are_refused(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="does not hold the weights"):
        teacher.from_timm("vit_tiny_patch16_224", img_size=96, checkpoint=tmp_path / "x.safetensors")
    for name in ("vit_tyni", "resnet10t"):
        with pytest.raises(ValueError, match="expected a VisionTransformer or a DINOv3 of timm"):
            teacher.from_timm(name, img_size=96, checkpoint=None)
    with pytest.raises(ValueError, match="no class token"):
        teacher.from_timm("vit_base_patch16_siglip_224", img_size=96, checkpoint=tmp_path / "x.safetensors")


def test_fused_attention_is_chosen_where_faster_and_gives_the_same_tokens(network):
    cpu, images = torch.device("cpu"), torch.randn(2, 3, 160, 160)  # 400 patches of 8 pixels
    with torch.no_grad():
        vit.use_fastest_attention(network, cpu)
        explicit = vit.encode_tokens(network, images)
        assert not any(block.attn.fused_attn for block in network.blocks)
        vit.use_fastest_attention(network, cpu, frozen_grid=(20, 20))
        assert all(block.attn.fused_attn for block in network.blocks)
        torch.testing.assert_close(vit.encode_tokens(network, images), explicit)
    vit.use_fastest_attention(network, cpu, frozen_grid=(19, 21))
    assert not any(block.attn.fused_attn for block in network.blocks)
    vit.use_fastest_attention(network, torch.device("cuda"))
    assert all(block.attn.fused_attn for block in network.blocks)
