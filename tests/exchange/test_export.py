"""Exports, loaded as users load them, have the outputs and the preprocessing of the original."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from semmae.data.crops import FULL_IMAGE, crop_image
from semmae.data.dataset import Reader
from semmae.evaluation.views import CenterView
from semmae.exchange import export
from semmae.models import classifier, frozen_encoder, mae, teacher, vit
from tests.data.readers import sample_table

SIZES = [
    {"img_size": 96, "patch_size": 8, "embed_dim": 72, "depth": 2, "num_heads": 3},
    {"img_size": 42, "patch_size": 14, "embed_dim": 40, "depth": 3, "num_heads": 2},
]
NORMALIZATION = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}  # not ImageNet's, to test that exports hold them


class Picture(Reader):
    """One smooth image."""

    def __init__(self) -> None:
        self.samples = sample_table(["picture"])
        noise = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        self.picture = Image.fromarray(noise).resize((150, 120), Image.Resampling.BICUBIC)

    def image(self, index, *, at_least=(0, 0)):
        return np.array(self.picture)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(params=SIZES, ids=lambda size: f"{size['img_size']}px-p{size['patch_size']}-d{size['embed_dim']}")
def folder(request, tmp_path):
    """An artifact of the pretrain stage in which no weight is zero."""
    torch.manual_seed(0)
    model = mae.MAE(vit.build(request.param), embed_dim=24, depth=2, num_heads=3)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    decoder = {"embed_dim": 24, "depth": 2, "num_heads": 3, "norm_pix_loss": True}
    mae.save(tmp_path / "pretrain", model, encoder=request.param | NORMALIZATION, decoder=decoder)
    return tmp_path / "pretrain"


@pytest.fixture
def images(folder):
    size = frozen_encoder.load_encoder(folder).config["img_size"]
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_timm_computes_equal_tokens_and_returns_the_class_token(folder, images, tmp_path):
    export.export(folder, tmp_path / "out", to="timm", with_decoder=False)
    network, _ = vit.load(folder)
    found = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert found.state_dict().keys() == network.state_dict().keys()
    with torch.no_grad():
        close(found.forward_features(images), vit.encode_tokens(network, images))
        close(found(images), vit.encode_tokens(network, images)[:, 0])


@pytest.mark.parametrize("pool", ["patch_mean", "class"])
def test_timm_computes_equal_logits_of_a_fine_tuned_network(pool, folder, images, tmp_path):
    encoder, config = vit.load(folder)
    names = ["cat", "giraffe", "duck"]
    options = {"num_classes": len(names), "pool": pool, "drop_path": 0.1, "seed": 0}
    model = classifier.from_encoder(encoder, config, **options).eval()
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(2))
    classifier.save(tmp_path / "tuned", model, config | {"pool": pool, "class_names": names})
    expression = export.export(tmp_path / "tuned", tmp_path / "out", to="timm", with_decoder=False)
    assert expression == f'timm.create_model("local-dir:{tmp_path / "out"}", pretrained=True)'
    found = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert found.state_dict().keys() == model.state_dict().keys()
    assert (found.num_classes, found.pretrained_cfg["label_names"]) == (3, names)
    assert (list(found.pretrained_cfg["mean"]), list(found.pretrained_cfg["std"])) == (
        NORMALIZATION["mean"],
        NORMALIZATION["std"],
    )
    with torch.no_grad():
        close(found(images), model(images))
    with pytest.raises(ValueError, match="holds a classifier, which cannot be exported to transformers; use --to timm"):
        export.export(tmp_path / "tuned", tmp_path / "other", to="transformers", with_decoder=False)


def test_transformers_loads_every_weight_and_computes_equal_tokens(folder, images, tmp_path):
    from transformers import ViTModel

    export.export(folder, tmp_path / "out", to="transformers", with_decoder=False)
    network, _ = vit.load(folder)
    options = {"add_pooling_layer": False, "output_loading_info": True}
    found, report = ViTModel.from_pretrained(tmp_path / "out", **options)
    assert not any(report.values())
    with torch.no_grad():
        close(found(images).last_hidden_state, vit.encode_tokens(network, images))


def test_transformers_computes_equal_reconstructions(folder, images, tmp_path):
    from transformers import ViTMAEForPreTraining

    export.export(folder, tmp_path / "out", to="transformers", with_decoder=True)
    model, _ = mae.load(folder)
    found, report = ViTMAEForPreTraining.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values())
    with torch.no_grad():
        output = found(images)
        mask = output.mask.bool()
        pred = model(images, mask, int(mask[0].sum()))
        close(output.logits[mask], pred[mask])
        close(output.loss, mae.loss(pred, images, mask, patch_size=model.patch_size, norm_pix_loss=True))


def test_an_export_holds_the_preprocessing_of_the_evaluations(folder, tmp_path):
    from transformers import AutoImageProcessor

    for to in ("timm", "transformers"):
        export.export(folder, tmp_path / to, to=to, with_decoder=False)
    size, picture = frozen_encoder.load_encoder(folder).config["img_size"], Picture()
    ours = torch.from_numpy(CenterView(size)(picture, 0)["image"])[None]
    expected = vit.normalize(ours, tuple(NORMALIZATION["mean"]), tuple(NORMALIZATION["std"]))
    model = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    by_timm = transform(picture.picture)[None]
    processor = AutoImageProcessor.from_pretrained(tmp_path / "transformers")
    by_transformers = processor(picture.picture, return_tensors="pt")["pixel_values"]
    uncropped = torch.from_numpy(crop_image(picture.image(0), FULL_IMAGE, size).transpose(2, 0, 1).copy())[None]

    def difference(found):
        assert found.shape == expected.shape
        return float((found - expected)[..., 4:-4, 4:-4].abs().mean())  # resampling differs at the edges of a crop

    # The libraries round the size before they crop, which shifts the crop by up to half a pixel.
    assert max(difference(by_timm), difference(by_transformers)) < 0.05
    assert difference(vit.normalize(uncropped, tuple(NORMALIZATION["mean"]), tuple(NORMALIZATION["std"]))) > 0.3


def test_a_teacher_from_timm_is_exported_and_an_unsupported_layer_is_named(tmp_path):
    network, config = timm.create_model("test_vit", num_classes=0, img_size=64, dynamic_img_size=True), {}
    config = {"timm": "test_vit.r160_in1k", "img_size": 64, "class_token": True, **NORMALIZATION}
    teacher.save_teacher(tmp_path / "teacher", network, config)
    export.export(tmp_path / "teacher", tmp_path / "timm", to="timm", with_decoder=False)
    export.export(tmp_path / "teacher", tmp_path / "transformers", to="transformers", with_decoder=False)
    other = timm.create_model("test_vit2", num_classes=0, img_size=64)
    with pytest.raises(ValueError, match=r"which the ViT of transformers (needs|lacks); use --to timm"):
        export.to_transformers(frozen_encoder.FrozenEncoder(other, config, ""), tmp_path / "other")


def test_an_export_with_other_outputs_is_not_written(folder, tmp_path):
    encoder = frozen_encoder.load_encoder(folder)
    encoder.network.norm.eps = 1e-2  # transformers has one epsilon for all norms
    with pytest.raises(ValueError, match="outputs of the export differ from the original by"):
        export.to_transformers(encoder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten_and_mistakes_are_reported(folder, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").touch()
    with pytest.raises(ValueError, match="exists and is not an empty folder"):
        export.export(folder, tmp_path / "full", to="timm", with_decoder=False)
    with pytest.raises(ValueError, match="timm has no model with a decoder"):
        export.export(folder, tmp_path / "out", to="timm", with_decoder=True)
    with pytest.raises(ValueError, match=r"neither encoder\.json nor teacher\.json"):
        export.export(tmp_path, tmp_path / "out", to="timm", with_decoder=False)
