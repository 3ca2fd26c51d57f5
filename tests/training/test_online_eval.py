"""Check scores during training: their values, their epochs, and datasets without labels or masks."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from semmae.data.dataset import Reader
from semmae.evaluation import features
from semmae.models import vit
from semmae.sharding import shard_writer
from semmae.sharding.sources.folder import FolderMasks, Tree
from semmae.training import online_eval
from semmae.training.online_eval import OnlineEvalConfig, OnlineEvaluator

CPU = torch.device("cpu")
CONFIG = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return vit.build(CONFIG)


def online_evaluator(folder: Path, every_epochs: int = 1) -> OnlineEvaluator:
    settings = OnlineEvalConfig(dataset=folder.name, every_epochs=every_epochs, num_images=1000)
    return OnlineEvaluator(settings, folder, pool="patch_mean", img_size=32, device=CPU, verbose=True)


def dots(folder: Path, side: int) -> Path:
    """Write six gray images of 32 pixels per split; the object is a white square of `side` pixels in a corner."""
    root = folder / "pictures"
    for split in ("train", "val"):
        for number in range(6):
            noise = np.random.default_rng(number).integers(100, 110, (32, 32), dtype=np.uint8)
            mask = np.zeros((32, 32), np.uint8)
            noise[:side, :side], mask[:side, :side] = 255, 1
            for kind, picture in (("", noise), ("masks/", mask)):
                path = root / f"{kind}{split}/{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), picture)
    masks = FolderMasks(folder="masks", kind="foreground", names=["background", "dot"])
    tree = Tree(kind="folder", path=str(root), splits=None, val_fraction=None, labels=False, masks=masks)
    shard_writer.write(
        folder / "dots", {"dots": tree}, seed=0, short_side=None, samples_per_shard=8, max_rejects=0.0, workers=0
    )
    return folder / "dots"


def test_knn_equals_scikit_learn(toy_dataset, encoder):
    top1 = online_evaluator(toy_dataset).measure(encoder)["knn_top1"]
    encode = features.build_feature_encoder(encoder.eval(), pool="patch_mean", device=CPU)
    train, val = (Reader(toy_dataset, split) for split in ("train", "val"))
    x, y = (features.extract(encode, reader, img_size=32, batch_size=8, workers=0).numpy() for reader in (train, val))
    peer = KNeighborsClassifier(
        online_eval.NEIGHBORS,
        metric="cosine",
        weights=lambda distance: np.exp((1 - distance) / online_eval.TEMPERATURE),
    )
    assert top1 == pytest.approx((peer.fit(x, train.labels).predict(y) == val.labels).mean())


def test_the_patch_probe_segments_a_white_square(tmp_path, encoder):
    assert online_evaluator(dots(tmp_path, side=8)).measure(encoder)["readout_iou"] == 1.0


@pytest.mark.parametrize("labeled", [True, False])
def test_rankme_needs_no_labels_and_shows_a_collapse(tmp_path, toy_dataset, encoder, labeled):
    evaluator = online_evaluator(toy_dataset if labeled else dots(tmp_path, side=8))
    healthy = evaluator.measure(encoder)["rankme"]
    for parameter in encoder.patch_embed.proj.parameters():  # every image gets the same tokens
        torch.nn.init.zeros_(parameter)
    assert evaluator.measure(encoder)["rankme"] == pytest.approx(1.0, abs=1e-4)
    assert healthy > 1.1


def test_a_dataset_without_train_has_no_scores(tmp_path, encoder, capsys):
    shutil.rmtree((folder := dots(tmp_path, side=8)).parent / "pictures/train")
    masks = FolderMasks(folder="masks", kind="foreground", names=["background", "dot"])
    tree = Tree(kind="folder", path=str(tmp_path / "pictures"), splits=["val"], val_fraction=None, labels=False,
                masks=masks)  # fmt: skip
    shard_writer.write(folder, {"dots": tree}, seed=0, short_side=None, samples_per_shard=8, max_rejects=0.0, workers=0)
    assert online_evaluator(folder).measure(encoder) == {}
    assert "online_eval: no RankMe during training: " in capsys.readouterr().out


def test_the_patch_probe_is_skipped_with_one_message_if_objects_are_smaller_than_a_patch(tmp_path, encoder, capsys):
    evaluator = online_evaluator(dots(tmp_path, side=3))
    assert "online_eval: no kNN during training" in capsys.readouterr().out
    assert evaluator.measure(encoder).keys() == evaluator.measure(encoder).keys() == {"rankme"}
    reason = "dots lacks object patches or background patches"
    assert capsys.readouterr().out == f"online_eval: no patch probe during training: {reason}\n"


@pytest.mark.parametrize(("every", "measured"), [(0, []), (1, [1, 2, 3, 4, 5]), (2, [1, 2, 4, 5]), (9, [1, 5])])
def test_scores_are_due_after_the_first_the_last_and_every_nth_epoch(toy_dataset, encoder, every, measured):
    evaluator = online_evaluator(toy_dataset, every)
    assert [epoch for epoch in range(1, 6) if evaluator.after_epoch(encoder, epoch, epoch == 5)] == measured


def test_the_encoder_stays_in_training_mode(toy_dataset, encoder):
    encoder.train()
    online_evaluator(toy_dataset).measure(encoder)
    assert all(module.training for module in encoder.modules())
