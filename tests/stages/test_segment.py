"""The segment stage on toy artifacts: results, repeated runs, and errors."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semmae.core import stage
from semmae.core.paths import state_root
from semmae.data.dataset import Reader
from semmae.evaluation import curve_files, scores
from semmae.evaluation.scores import Scores
from semmae.models import teacher, vit
from semmae.runs import run
from stages import segment

CONFIG = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
PARAMS = """
evaluations: {segment: {toy: {}, gone: {}}}
segment:
  protocol:
    heads: [linear, knn]
    short_side: 40
    crop: null
    stride: 16
    training_crops: {zoom: [0.75, 1.5], flip: 0.5}
    num_images: 30
    shuffle_shards: null
    holdout: 0.2
    linear: {base_lrs: [1.0, 0.1], weight_decay: 0.0, epochs: 2, warmup_epochs: 1, batch_size: 8}
    knn: {k: [5, 1], temperature: 0.07, patches: 200}
    upernet: {width: 8, auxiliary_width: 8, auxiliary_weight: 0.4, epochs: 1, batch_size: 16, base_lr: 8.0e-3,
      min_lr: 0.0, warmup_epochs: 0.5, power: 1.0, weight_decay: 0.05, betas: [0.9, 0.999], layer_decay: 0.75,
      drop_path: 0.1}
    baselines: true
    examples: 3
    batch_size: 4
    seed: 0
    checkpoint_minutes: 5
    compute: {device: cpu, precision: fp32, compile: false, workers: 0}
"""


@pytest.fixture
def project(tmp_path: Path, toy_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose encoder and teacher are untrained."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(PARAMS)
    Path("data/shards").mkdir(parents=True)
    Path("data/shards/toy").symlink_to(toy_dataset)
    vit.save(Path("data/pretrain"), vit.build(CONFIG), CONFIG)
    described = CONFIG | {"class_token": False, "mean": vit.MEAN, "std": vit.STD}
    teacher.save_teacher(Path("data/teacher"), vit.build(CONFIG), described)
    return tmp_path


def start(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Run the stage as `python -m stages.segment <arguments>` does."""
    monkeypatch.setattr(sys, "argv", ["segment", *arguments])
    stage.main(segment.main)


def change(old: str, new: str) -> None:
    text = Path("params.yaml").read_text()
    assert old in text
    Path("params.yaml").write_text(text.replace(old, new))


def written() -> dict[str, Scores]:
    return scores.read_groups(Path("results/segment/toy.json"))


def masks() -> dict[tuple[str, str], np.ndarray]:
    """Read the predicted masks by head and key."""
    paths = Path("results/segment/examples/toy").glob("*/*.png")
    return {(path.parent.name, path.stem): np.asarray(Image.open(path)) for path in paths}


def test_frozen_heads_are_scored_with_baselines_and_in_any_order_alike(project, monkeypatch):
    start(monkeypatch, "toy")
    heads, examples = written(), masks()
    assert set(heads) == {"linear", "knn"}
    metrics = {"miou", "pixel_accuracy", "miou_se"}
    assert set(heads["linear"].encoder) == metrics | {"base_lr"}
    assert set(heads["knn"].encoder) == metrics | {"k"}
    assert set(heads["linear"].baselines) == {"untrained", "teacher", "most_frequent", "position"}
    assert set(heads["knn"].baselines) == {"most_frequent", "position"}
    for head in heads.values():
        assert all(set(baseline) == {"miou", "pixel_accuracy"} for baseline in head.baselines.values())
    reader = Reader(Path("data/shards/toy"), "val")
    assert list(heads["knn"].class_iou) == reader.mask_names
    known = [iou for iou in heads["knn"].class_iou.values() if iou is not None]
    assert heads["knn"].encoder["miou"] == pytest.approx(np.mean(known))
    for training in ("linear", "linear_untrained", "linear_teacher"):
        curves = curve_files.read(Path("results/segment/curves/toy"), training)
        assert list(curves) == ["loss", "lr"]
        assert [epoch for epoch, _ in curves["loss"]] == [1, 2]
    keys = {key for _, key in examples}
    assert len(keys) == 3
    assert set(examples) == {(head, key) for head in ("linear", "knn") for key in keys}
    assert any((examples["linear", key] != examples["knn", key]).any() for key in keys)
    for (_, key), mask in examples.items():
        assert mask.dtype == np.uint8
        assert mask.shape == reader.mask(reader.keys.index(key)).shape
        assert mask.max() < len(reader.mask_names)
    assert not list(state_root().glob("runs/*"))
    change("heads: [linear, knn]", "heads: [knn, linear]")
    start(monkeypatch, "toy")
    assert written() == heads
    assert all((masks()[which] == mask).all() for which, mask in examples.items())


def test_a_stop_while_scoring_keeps_the_checkpoint_of_the_fine_tuned_head(project, monkeypatch):
    change("heads: [linear, knn]", "heads: [upernet]")
    change("baselines: true", "baselines: false")
    monkeypatch.setattr(segment.SegmentationTask, "score", lambda *_: run.signal.raise_signal(run.signal.SIGTERM))
    change("epochs: 1, batch_size: 16", "epochs: 2, batch_size: 16")
    with pytest.raises(SystemExit) as ended:
        start(monkeypatch, "toy")
    assert ended.value.code == 143
    assert not Path("results/segment/toy.json").exists()
    assert len(list(state_root().glob("runs/*/step-*"))) == 1
    monkeypatch.undo()
    monkeypatch.setenv("SEMMAE_STATE", str(project / "state"))
    monkeypatch.chdir(project)
    start(monkeypatch, "toy")
    assert set(written()) == {"upernet"}
    assert len(curve_files.read(Path("results/segment/curves/toy"), "upernet")["loss"]) == 2


@pytest.mark.parametrize(
    ("old", "new", "argument", "sentence"),
    [
        ("gone", "gone", "tyo", "segment has no dataset 'tyo'; params.yaml has toy, gone"),
        ("gone", "gone", "gone", "gone is not a dataset"),
        ("crop: null", "crop: 36", "toy", "segment.protocol.crop is 36; it must be a multiple of the encoder's patch"),
        (
            "short_side: 40",
            "short_side: 24",
            "toy",
            "stride is 16, crop is 32 and short_side is 24; expected stride <= crop",
        ),
        (
            "batch_size: 8}",
            "batch_size: 80}",
            "toy",
            "segment.linear: batch_size is 80, but an epoch has 24 samples",
        ),
    ],
)
def test_invalid_settings_give_an_error_of_one_line(project, monkeypatch, capsys, old, new, argument, sentence):
    change(old, new)
    with pytest.raises(SystemExit) as ended:
        start(monkeypatch, argument)
    assert ended.value.code == 1
    message = capsys.readouterr().err
    assert sentence in message
    assert message.count("\n") == 1
    assert not Path("results").exists()


def test_a_class_that_train_lacks_is_refused(project, monkeypatch, capsys):
    counted = segment.splits.open_masked_split

    def without_tails(dataset: Path, split: str):
        reader, counts = counted(dataset, split)
        counts[:, reader.mask_names.index("tail")] *= split == "val"
        return reader, counts

    monkeypatch.setattr(segment.splits, "open_masked_split", without_tails)
    with pytest.raises(SystemExit):
        start(monkeypatch, "toy")
    assert (
        "the masks of val have classes that the masks of train lack (tail), and no head can learn them"
        in capsys.readouterr().err
    )
