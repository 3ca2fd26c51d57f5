"""What is watched while tokens are learned: against scikit-learn, when it is due, and what a dataset has nothing for."""

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


def watch(folder: Path, every_epochs: int = 1) -> OnlineEvaluator:
    settings = OnlineEvalConfig(dataset=folder.name, every_epochs=every_epochs, num_images=1000)
    return OnlineEvaluator(settings, folder, pool="patch_mean", img_size=32, device=CPU, shown=True)


def dots(folder: Path, side: int) -> Path:
    """Six gray images of 32 pixels in each split, the object a white square of `side` pixels in one corner."""
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


def test_knn_is_that_of_scikit_learn(toy_dataset, encoder):
    found = watch(toy_dataset).measure(encoder)["knn_top1"]
    encode = features.pooled(encoder.eval(), pool="patch_mean", device=CPU)
    train, val = (Reader(toy_dataset, split) for split in ("train", "val"))
    x, y = (features.extract(encode, reader, img_size=32, batch_size=8, workers=0).numpy() for reader in (train, val))
    peer = KNeighborsClassifier(
        online_eval.NEIGHBORS,
        metric="cosine",
        weights=lambda distance: np.exp((1 - distance) / online_eval.TEMPERATURE),
    )
    assert found == pytest.approx((peer.fit(x, train.labels).predict(y) == val.labels).mean())


def test_an_object_that_tokens_show_is_read_out(tmp_path, encoder):
    assert watch(dots(tmp_path, side=8)).measure(encoder) == {"readout_iou": 1.0}


def test_objects_smaller_than_a_patch_have_no_read_out_and_that_is_said_once(tmp_path, encoder, capsys):
    watching = watch(dots(tmp_path, side=3))
    assert "no kNN while training" in capsys.readouterr().out
    assert watching.measure(encoder) == watching.measure(encoder) == {}
    assert capsys.readouterr().out == "no patch read-out while training: dots lacks patches of object or background\n"


@pytest.mark.parametrize(("every", "measured"), [(0, []), (1, [1, 2, 3, 4, 5]), (2, [1, 2, 4, 5]), (9, [1, 5])])
def test_it_is_due_after_the_first_the_last_and_every_so_many_epochs(toy_dataset, encoder, every, measured):
    watching = watch(toy_dataset, every)
    assert [epoch for epoch in range(1, 6) if watching.after_epoch(encoder, epoch, epoch == 5)] == measured


def test_training_goes_on_as_it_was(toy_dataset, encoder):
    encoder.train()
    watch(toy_dataset).measure(encoder)
    assert all(module.training for module in encoder.modules())
