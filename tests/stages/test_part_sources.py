"""Every source of part maps works in all stages, from the part method to the report."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semmae.core.atomic_files import read_json
from semmae.core.model_files import model_digest
from semmae.data.dataset import Reader
from semmae.data.patch_masks import WholeView, majority_labels
from semmae.evaluation import scores
from semmae.parts import part_maps
from semmae.parts.part_methods import load_parts
from tests.project import Project, call


def read_maps(method_digest: str) -> part_maps.PartMaps:
    teacher = model_digest(Path("data/teacher"), "teacher")
    reader = Reader(Path("data/shards/toy"))
    return part_maps.join(Path("data/part_maps/toy"), reader, teacher=teacher, parts=method_digest)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("paper", {"num_parts": 3, "background": True, "num_heads": 2, "patch_size": 8}),
        ("kmeans", {"num_parts": 3, "background": False, "temperature": 0.1}),
        ("attention", {"num_parts": 2, "background": True}),  # the teacher has two heads
        ("grid", {"num_parts": 3, "background": False}),
        ("truth", {"num_parts": 8, "background": True}),
    ],
)
def test_a_source_of_part_maps_works_end_to_end(inside: Project, name: str, config: dict[str, Any]):
    inside.set("parts.method", name)
    call("parts")
    method = load_parts(Path("data/parts"))
    assert method.config.items() >= config.items()
    assert read_json(Path("results/parts/metrics.json"))["parts"]["num_parts"] == method.num_parts
    call("part_maps")
    found = set(np.unique(read_maps(method.digest).channels["part_map"]))
    assert len(found) > 1
    assert found <= set(range(method.num_labels))
    call("pretrain")
    assert read_json(Path("data/pretrain/encoder.json"))["params"]["masking"]["strategy"] == "semantic"
    call("part_scores", "toy")
    call("report")
    assert f"method: {name}" in Path("results/report/index.html").read_text()


def test_true_parts_agree_with_the_masks(inside: Project):
    inside.set("parts.method", "truth")
    call("parts")
    call("part_maps")
    method, reader = load_parts(Path("data/parts")), Reader(Path("data/shards/toy"))
    view = WholeView(32, method.grid, num_classes=len(reader.mask_names))
    true = majority_labels(np.stack([view.counts(reader, i) for i in range(len(reader))]))
    assert np.array_equal(read_maps(method.digest).channels["part_map"], (true - 1) % 9)
    call("part_scores", "toy")
    patch = scores.read_groups(Path("results/part_scores/toy.json"))["patch"].encoder
    perfect = ("fg_iou", "nmi_all", "ari_all", "nmi_fg", "ari_fg", "miou", "consistency", "background_share")
    assert {metric: patch[metric] for metric in perfect} == pytest.approx(dict.fromkeys(perfect, 1.0))


def test_a_changed_mask_changes_the_part_maps_of_true_parts(inside: Project, capsys: pytest.CaptureFixture[str]):
    inside.set("parts.method", "truth")
    call("parts")
    call("part_maps")
    before = read_maps(load_parts(Path("data/parts")).digest)
    file = next(Path("data/raw/pictures/masks/train").rglob("*.png"))
    file.write_bytes(next(Path("data/raw/pictures/masks/val").rglob("*.png")).read_bytes())
    call("shards", "toy")
    call("parts")
    capsys.readouterr()
    call("part_maps")
    assert "part_maps: 1 of " in capsys.readouterr().out
    after = read_maps(load_parts(Path("data/parts")).digest)
    different = (before.channels["part_map"] != after.channels["part_map"]).any(1)
    assert [key for key, changed in zip(after.keys, different, strict=True) if changed] == [
        key for key in after.keys if file.stem in key and "train" in key
    ]


def test_true_parts_of_images_without_masks_are_refused(inside: Project, capsys: pytest.CaptureFixture[str]):
    next(Path("data/raw/pictures/masks/val").rglob("*.png")).unlink()
    call("shards", "toy")
    inside.set("parts.method", "truth")
    with pytest.raises(SystemExit):
        call("parts")
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: parts.method is truth: 1 of ")
    assert message.endswith("expected one for each image. Choose another parts.method, or another dataset")
