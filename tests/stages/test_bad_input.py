"""A stage refuses unusable datasets, encoders and checkpoints with one line that names the problem."""

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import pyarrow.parquet as pq
import pytest
import torch

from semmae.core.atomic_files import read_json, write_json
from semmae.core.digests import file_digest
from semmae.models import teacher, vit
from tests.project import Project, call

CLASSIFIERS = ("knn", "linear", "attentive", "finetune")
META = Path("data/shards/toy/shards.json")


def refused(capsys: pytest.CaptureFixture[str], name: str, *arguments: str) -> str:
    """Run a stage that fails, and return the line that it prints to standard error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        call(name, *arguments)
    assert ended.value.code == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: ")
    return message


def masks_of_train(change: Callable) -> None:
    """Replace each mask of train by the result of `change`."""
    for file in sorted(Path("data/raw/pictures/masks/train").rglob("*.png")):
        cv2.imwrite(str(file), change(cv2.imread(str(file), cv2.IMREAD_UNCHANGED)))


def without_eyes(mask):
    mask[mask == 7] = 255  # ignored
    return mask


def tampered(**changes) -> None:
    write_json(META, read_json(META) | changes)


def encoder(folder: Path, patch_size: int, img_size: int) -> Path:
    """Save an untrained encoder with that patch size, and return its file."""
    config = {"img_size": img_size, "patch_size": patch_size, "embed_dim": 32, "depth": 1, "num_heads": 2}
    vit.save(folder, vit.build(config), config | {"mean": vit.MEAN, "std": vit.STD})
    return (folder / "encoder.safetensors").resolve()


def test_a_class_of_val_that_train_lacks(inside: Project, capsys: pytest.CaptureFixture[str]):
    for kind in ("images", "masks"):
        shutil.rmtree(f"data/raw/pictures/{kind}/train/cat")
    call("shards", "toy")
    for name in CLASSIFIERS:
        assert "val has classes that train lacks (cat), and no classifier can learn them" in refused(
            capsys, name, "toy"
        )


def test_a_class_of_vals_masks_that_those_of_train_lack(inside: Project, capsys: pytest.CaptureFixture[str]):
    masks_of_train(without_eyes)
    call("shards", "toy")
    assert "the masks of val have classes that the masks of train lack (eyes), and no head can learn them" in refused(
        capsys, "segment", "toy"
    )


def test_masks_of_another_size(inside: Project, capsys: pytest.CaptureFixture[str]):
    folder = Path("data/raw/pictures/masks/train/cat")
    for file in folder.glob("*.png"):
        cv2.imwrite(str(file), cv2.imread(str(file), cv2.IMREAD_UNCHANGED)[:16])
    call("shards", "toy")  # rejects 8 of 96; a tenth is allowed
    reasons = pq.read_table("data/shards/toy/rejected.parquet")["reason"].to_pylist()
    assert reasons == ["the mask and its upright image differ in size: 32x16 for 32x32"] * 8
    masks_of_train(lambda mask: mask[:16])
    with pytest.raises(SystemExit):
        call("shards", "toy")
    message = capsys.readouterr().err
    assert "64 of 96 inputs are rejected" in message
    assert "the mask and its upright image differ in size" in message


def test_labels_beyond_the_class_list(inside: Project, capsys: pytest.CaptureFixture[str]):
    names = read_json(META)["class_names"]
    tampered(class_names=names[:3])
    for name in CLASSIFIERS:
        message = refused(capsys, name, "toy")
        assert (
            "train has the label 7, but shards.json names 3 classes. Write the dataset again: dvc repro -f" in message
        )


@pytest.mark.parametrize("name", ["segment", "part_scores"])
def test_labels_of_masks_beyond_their_names(name: str, inside: Project, capsys: pytest.CaptureFixture[str]):
    tampered(mask_names=["background", "body", "head"])
    message = refused(capsys, name, "toy")
    assert "data/shards/toy/train-000000.tar, sample " in message
    assert "the mask holds an index without a name: 8, names are for 0 to 2; restore it" in message


def test_labels_of_sources_beyond_the_class_list(inside: Project, capsys: pytest.CaptureFixture[str]):
    inside.set("shards.datasets.toy.sources.pictures.masks.names", ["background", "body", "head"])
    with pytest.raises(SystemExit):
        call("shards", "toy")
    assert "the mask holds an index without a name (e.g. pictures/images/train/" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stage", "key", "value", "sentence"),
    [
        ("finetune", "finetune.protocol.img_size", 40, "img_size is 40; the encoder needs a multiple of its patch"),
        ("segment", "segment.protocol.crop", 40, "segment.protocol.crop is 40; it must be a multiple of the encoder's"),
        ("segment", "segment.protocol.crop", None, "48; it must be a multiple of the teacher's patch size, 32"),
    ],
    ids=["finetune", "segment", "segment beside a teacher"],
)  # fmt: skip
def test_an_encoder_of_another_patch_size(stage, key, value, sentence, inside, capsys):
    encoder(Path("data/pretrain"), 16, 48)
    inside.set("segment.protocol.short_side", 48)
    for name in ("knn", "linear"):  # these accept any patch size
        call(name, "toy")
    config = {"img_size": 32, "patch_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 2}
    described = {"class_token": False, "mean": vit.MEAN, "std": vit.STD}
    teacher.save_teacher(Path("data/teacher"), vit.build(config), config | described)
    inside.set(key, value)
    assert sentence in refused(capsys, stage, "toy")


@pytest.mark.parametrize("source", ["semmae", "ibot", "timm"])
def test_a_teacher_of_another_patch_size(source: str, inside: Project, capsys: pytest.CaptureFixture[str]):
    inside.set("teacher.source", source)
    if source == "timm":
        model = "vit_tiny_patch16_224"
        file = Path("tiny.pth").resolve()
        torch.save(teacher.create_network(model, 32).state_dict(), file)
        inside.set("teacher.model", "vit_small_patch8_224.dino")
        sentences = [
            "its patches are 16 pixels wide, expected 8",
            f"teacher.model {model} needs a multiple of its patch",
        ]
    else:
        file = encoder(Path("data/encoders/other"), 16, 32)
        sentences = [
            "has patch_size 16, but teacher.network has 8; make them equal",
            f"the encoder in {file} needs a multiple",
        ]
    inside.set("teacher.checkpoint", {"path": str(file), "sha256": file_digest(file)})
    if source != "semmae":  # source semmae takes the architecture from the file
        assert sentences[0] in refused(capsys, "teacher")
    if source == "timm":
        inside.set("teacher.model", model)
    inside.set("teacher.img_size", 40)
    assert sentences[1] in refused(capsys, "teacher")
