"""Published checkpoints: their code does not run, other files are refused, and encoders of MAE load unchanged."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from semmae.models import pretrained_weights, vit

SHAPE = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}


class Boom:
    def __reduce__(self):
        return (print, ("unpickled",))


def mae_network() -> VisionTransformer:
    """timm's ViT at toy size with random weights and MAE's positions, built without our code."""
    torch.manual_seed(0)
    network = VisionTransformer(**SHAPE, num_classes=0).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    network.pos_embed.data.copy_(mae_positions(4, 48))
    return network


def mae_positions(side: int, width: int) -> Tensor:
    """Sine and cosine of the column, then of the row, as in MAE's files; zeros for the class token."""
    frequency = 10000 ** -(np.arange(width // 4) / (width / 4))
    row, column = np.divmod(np.arange(side**2), side)
    angles = [np.outer(position, frequency) for position in (column, row)]
    table = np.concatenate([wave(angle) for angle in angles for wave in (np.sin, np.cos)], axis=1)
    return torch.from_numpy(np.concatenate([np.zeros((1, width)), table])).float()[None]


def mae_state(network: VisionTransformer) -> dict[str, Tensor]:
    """The content of a pretraining file: encoder and decoder."""
    decoder = {"mask_token": torch.ones(1, 1, 16), "decoder_pos_embed": torch.ones(1, 17, 16)}
    return network.state_dict() | decoder | {"decoder_blocks.0.norm1.weight": torch.ones(16)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mae_pretrain.pth"
    torch.save({"model": mae_state(mae_network()), "epoch": 799, "scaler": {"scale": 1.0}}, path)
    return path


def test_an_encoder_of_mae_gives_the_same_tokens_after_saving_and_loading(file, tmp_path):
    network, config = pretrained_weights.load_mae_encoder(file, num_heads=3)
    assert {key: config[key] for key in SHAPE} == SHAPE
    assert config["imported"]["positions"] == "sine-cosine"
    vit.save(tmp_path / "ours", network, config)
    loaded, _ = vit.load(tmp_path / "ours")
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(
        vit.encode_tokens(loaded, images), mae_network().forward_features(images), rtol=0, atol=1e-5
    )


def test_positions_are_resampled_as_by_timm(file):
    network, config = pretrained_weights.load_mae_encoder(file, img_size=48, num_heads=3)
    assert config["img_size"] == 48
    other = mae_network()
    other.set_input_size((48, 48))
    images = torch.randn(1, 3, 48, 48)
    torch.testing.assert_close(vit.encode_tokens(network, images), other.forward_features(images), rtol=0, atol=1e-5)


def test_the_pooling_norm_of_a_finetuned_file_becomes_the_final_norm(tmp_path):
    state = mae_network().state_dict()
    norm = {f"fc_norm.{part}": state.pop(f"norm.{part}") for part in ("weight", "bias")}
    torch.save({"model": state | norm | {"head.weight": torch.ones(5, 48)}}, tmp_path / "tuned.pth")
    network, _ = pretrained_weights.load_mae_encoder(tmp_path / "tuned.pth", num_heads=3)
    assert torch.equal(network.norm.weight, norm["fc_norm.weight"])


def test_learned_positions_are_kept_and_recorded(tmp_path):
    state = mae_network().state_dict()
    state["pos_embed"] = torch.randn(1, 17, 48)
    torch.save(state, tmp_path / "own.pth")
    network, config = pretrained_weights.load_mae_encoder(tmp_path / "own.pth", num_heads=3)
    assert config["imported"]["positions"] == "its own"
    assert torch.equal(network.pos_embed, state["pos_embed"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"patch_embed.proj.weight": torch.ones(48, 3, 8, 4)}, "48 x 3 x 8 x 4; expected width x 3 x p x p"),
        ({"patch_embed.proj.weight": None}, "it lacks patch_embed.proj.weight"),
        ({"pos_embed": torch.ones(1, 16, 48)}, "has 16 positions; expected a class token and a square of patches"),
        ({"blocks.1.mlp.fc2.bias": None}, "the weights of an MAE encoder: it lacks blocks.1.mlp.fc2.bias"),
        ({"blocks.0.gamma_1": torch.ones(48)}, "it has blocks.0.gamma_1, which is not expected"),
    ],
)  # fmt: skip
def test_another_format_gives_an_error_of_one_line(change, reason, tmp_path):
    state = mae_state(mae_network()) | change
    torch.save({key: value for key, value in state.items() if value is not None}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=reason) as refused:
        pretrained_weights.load_mae_encoder(tmp_path / "x.pth", num_heads=3)
    assert "\n" not in str(refused.value)


def test_the_number_of_heads_follows_from_the_width_or_is_given(file):
    with pytest.raises(ValueError, match="has width 48; .* Give --num-heads"):  # noqa: RUF043
        pretrained_weights.load_mae_encoder(file)
    with pytest.raises(ValueError, match="embed_dim is 48"):
        pretrained_weights.load_mae_encoder(file, num_heads=5)


@pytest.mark.parametrize("old", [False, True])
def test_code_in_a_pickle_does_not_run(old, tmp_path, capsys):
    torch.save({"model": Boom()}, tmp_path / "boom.pth", _use_new_zipfile_serialization=not old)
    with pytest.raises(ValueError, match=r"holds (builtins\.)?print; expected only weights and plain values"):
        pretrained_weights.read_state_dict(tmp_path / "boom.pth")
    assert "unpickled" not in capsys.readouterr().out


def test_numpy_scalars_are_read_under_their_old_name(tmp_path):
    torch.save({"x": torch.ones(1), "lr": np.float64(0.5)}, tmp_path / "new.pth")
    with zipfile.ZipFile(tmp_path / "new.pth") as new, zipfile.ZipFile(tmp_path / "old.pth", "w") as old:
        for name in new.namelist():
            old.writestr(name, new.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert (tmp_path / "old.pth").read_bytes().count(b"numpy.core.multiarray") == 1
    assert list(pretrained_weights.read_state_dict(tmp_path / "old.pth")) == ["x"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no checkpoint", "x.pth (is no checkpoint|holds no weights that torch knows)"),
        (b"", "x.pth is no checkpoint"),
        ({"epoch": 3}, "holds no weights, only epoch"),
        (torch.ones(3), "holds a Tensor; expected a state dict"),
    ],
)
def test_a_file_without_weights_is_refused(content, reason, tmp_path):
    file = tmp_path / "x.pth"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    with pytest.raises(ValueError, match=reason) as refused:
        pretrained_weights.read_state_dict(file)
    assert "\n" not in str(refused.value)


def test_a_missing_file_and_a_wrong_digest_are_refused(file):
    with pytest.raises(ValueError, match="there is no file"):
        pretrained_weights.read_state_dict(file.with_name("none.pth"))
    with pytest.raises(ValueError, match=r"but params\.yaml has 0000"):
        pretrained_weights.read_state_dict(file, "0000")
