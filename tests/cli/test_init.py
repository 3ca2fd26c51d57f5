"""`semmae init` describes images truly, writes parameters that all stages accept, and refuses what it cannot use."""

import importlib
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from semmae.cli import init as command
from semmae.cli.main import app
from semmae.core.config import load_config
from semmae.data.decoding import encode_png
from semmae.project import image_survey, mask_survey, measurements, plan, project_files, published, settings
from semmae.project.machine import Machine
from semmae.project.params_file import project_params
from semmae.project.pipeline_file import project_pipeline

CPU = Machine([], cores=2, memory=2**34, free_disk=10**12)
GPU = Machine([("GPU", 2**36)], cores=16, memory=2**37, free_disk=10**12)
SPEEDS = measurements.Speeds(startup=5, convert=0.001, step=0.5, encode=0.005, map_image=0.01, fit=0.01)
SCHEMAS = {
    "shards": "ShardsConfig", "teacher": "TeacherConfig", "parts": "PartsConfig", "part_maps": "PartMapsConfig",
    "part_scores": "PartScoresConfig", "pretrain": "PretrainConfig", "knn": "KnnConfig", "linear": "LinearConfig",
    "attentive": "AttentiveConfig", "finetune": "FinetuneConfig", "segment": "SegmentConfig", "report": "ReportConfig",
}  # fmt: skip


def write_images(folder: Path, count: int, *, size: tuple[int, int] = (40, 56)) -> None:
    """Write PNG files of different colors."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.full((*size, 3), (number % 256, number // 256, len(str(folder)) % 256), np.uint8)
        (folder / f"{number}.png").write_bytes(encode_png(pixels))


def survey_stub(count: int, *, side: int = 160, val: int = 0, classes: int = 0) -> image_survey.ImageSurvey:
    """Describe `count` images that do not exist."""
    splits = {"train": count - val} | ({"val": val} if val else {})
    sample = image_survey.ImageSample([(side, 2 * side)] * 10, Counter(RGB=10), [], [], 0.01)
    names = Counter({f"class {number}": count // classes for number in range(classes)}) if classes else Counter()
    return image_survey.ImageSurvey(
        Path("/data/photos"),
        "folder",
        splits,
        Counter(jpg=count),
        count * 10_000,
        names,
        0,
        0,
        True,
        0,
        [],
        False,
        sample,
    )


def mask_stub(kind: str | None) -> mask_survey.MaskSurvey | None:
    """Describe masks that do not exist."""
    if kind is None:
        return None
    return mask_survey.MaskSurvey("masks", kind, mask_survey.default_names(kind, 5), "", 100, 100, [])


# Looking at images


def test_a_survey_counts_what_is_in_a_folder(tmp_path: Path):
    write_images(tmp_path / "train/cat", 30)
    write_images(tmp_path / "train/mouse", 10, size=(30, 20))
    write_images(tmp_path / "val/cat", 5)
    (tmp_path / "train/cat/broken.jpg").write_bytes(b"no image")
    (tmp_path / "train/notes.txt").write_text("text")
    (tmp_path / "train/cat/twice.png").write_bytes((tmp_path / "train/cat/3.png").read_bytes())
    survey = image_survey.survey_images(tmp_path)
    assert survey.splits == {"train": 42, "val": 5}
    assert survey.formats == {"png": 46, "jpg": 1}
    assert survey.classes == {"cat": 37, "mouse": 10}
    assert (survey.duplicates, survey.compared_all, survey.others, survey.has_masks) == (1, True, 1, False)
    assert [path for path, _ in survey.sample.broken] == ["train/cat/broken.jpg"]
    assert Counter(survey.sample.sizes) == {(40, 56): 36, (30, 20): 10}
    assert survey.sample.modes == {"RGB": 46}


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_text("text"), "neither a folder nor a tar"),
        (lambda path: path.mkdir(), "has 0 images; expected at least 30"),
        (lambda path: write_images(path, 29), "has 29 images; expected at least 30"),
        (lambda path: write_broken(path), "none of 40 images"),
        (lambda path: write_images(path / "val", 40), "none in the split train"),
    ],
    ids=["missing", "a file", "empty", "few", "broken", "no train"],
)
def test_what_is_not_enough_is_refused_in_a_sentence(tmp_path: Path, prepare, message: str):
    prepare(tmp_path / "images")
    result = CliRunner().invoke(app, ["init", str(tmp_path / "new"), "--images", str(tmp_path / "images")])
    assert isinstance(result.exception, ValueError)
    assert message in str(result.exception)
    assert not (tmp_path / "new").exists()


def write_broken(folder: Path) -> None:
    """Write files with the extension of images that are none."""
    folder.mkdir()
    for number in range(40):
        (folder / f"{number}.jpg").write_bytes(b"no image %d" % number)


@pytest.mark.parametrize(
    ("values", "border", "kind"),
    [(1, 0, "foreground"), (4, 0, "parts"), (4, 2, "classes")],
    ids=lambda value: str(value),
)
def test_the_kind_of_masks_follows_from_their_values(tmp_path: Path, values: int, border: int, kind: str):
    write_images(tmp_path / "images", 12)
    (tmp_path / "masks").mkdir()
    for number in range(12):
        mask = np.full((40, 56), border, np.uint8)
        mask[10:30, 10:40] = 1 + number % values
        (tmp_path / f"masks/{number}.png").write_bytes(encode_png(mask))
    found = mask_survey.survey_masks(tmp_path, "folder", "masks")
    assert (found.kind, found.masked, found.decoded) == (kind, 12, 12)
    assert len(found.names) == values + 1
    with pytest.raises(ValueError, match=f"expected {values + 1} names or more"):
        mask_survey.survey_masks(tmp_path, "folder", "masks", names=["one"])


def test_masks_of_one_split_alone_are_refused(tmp_path: Path):
    write_images(tmp_path / "train", 3)
    write_images(tmp_path / "val", 3)
    (tmp_path / "masks/train").mkdir(parents=True)
    (tmp_path / "masks/train/0.png").write_bytes(encode_png(np.eye(40, 56, dtype=np.uint8)))
    with pytest.raises(ValueError, match="no image in the split val has a mask"):
        mask_survey.survey_masks(tmp_path, "folder", "masks")


def test_masks_elsewhere_are_linked_into_the_project(tmp_path: Path):
    write_images(tmp_path / "photos/train", 3)
    (tmp_path / "labels/train").mkdir(parents=True)
    for number in range(3):
        (tmp_path / f"labels/train/{number}.png").write_bytes(encode_png(np.eye(40, 56, dtype=np.uint8)))
    tree, folder = project_files.locate_masks(tmp_path / "new", tmp_path / "photos", tmp_path / "labels")
    assert folder is not None
    assert mask_survey.survey_masks(tree, "folder", folder).masked == 3
    inside = project_files.locate_masks(tmp_path / "new", tmp_path, tmp_path / "labels")
    assert inside == (tmp_path, "labels")


# Settings


@pytest.mark.parametrize(
    ("count", "labels", "kind"),
    [
        (30, False, None), (30, True, "classes"), (31, True, "parts"), (100, False, "foreground"), (1000, True, None),
        (1000, True, "classes"), (100_000, False, "parts"), (100_000, True, "foreground"),
    ],
)  # fmt: skip
def test_every_stage_accepts_the_parameters(tmp_path: Path, count: int, labels: bool, kind: str | None):
    survey = survey_stub(count, side=28 if count == 31 else 300, val=count // 5 if labels else 0, classes=3 * labels)
    masks, machine = mask_stub(kind), GPU if count == 1000 else CPU
    teacher = settings.PublishedTeacher("vit_small_patch16_224.dino", None, 224, 16) if count == 100 else None
    request = plan.Request(survey, masks, labels, teacher, budget=3600)
    tier = (settings.GPU_TIERS if machine.has_gpu else settings.CPU_TIERS)[0]
    planned = plan.fit_to_budget(request, plan.initial_settings(request, machine, tier), SPEEDS)
    file = tmp_path / "params.yaml"
    file.write_text(project_params(planned.settings, survey, masks, labels=labels, raw=Path("/none")))
    for stage, schema in SCHEMAS.items():
        load_config(getattr(importlib.import_module(f"stages.{stage}"), schema), stage, file=file)
    assert planned.settings.batch_size <= settings.count_train(survey, planned.settings.val_fraction)
    evaluated = {stage for stage, names in YAML().load(file)["evaluations"].items() if names}
    expected = ({"knn", "linear", "attentive"} if labels else set()) | ({"segment"} if kind else set())
    assert evaluated == expected | ({"part_scores"} if kind in ("foreground", "parts") else set())


@pytest.mark.parametrize("minutes", [20, 60, 600])
def test_the_trainings_fill_the_time(minutes: int):
    request = plan.Request(survey_stub(5000), None, False, None, budget=60 * minutes)
    planned = plan.fit_to_budget(request, plan.initial_settings(request, CPU, settings.CPU_TIERS[0]), SPEEDS)
    epoch = plan.steps_per_epoch(request, planned.settings) * SPEEDS.step
    assert abs(planned.seconds - request.budget) <= 2 * epoch
    slower = plan.fit_to_budget(request, planned.settings, replace(SPEEDS, step=1.0))
    assert slower.settings.epochs < planned.settings.epochs


def test_a_small_image_is_not_enlarged():
    sides = {side: settings.image_side(settings.CPU_TIERS[0], survey_stub(100, side=side)) for side in (32, 70, 500)}
    assert sides == {32: (32, 4), 70: (64, 8), 500: (96, 8)}
    assert settings.image_side(settings.GPU_TIERS[0], survey_stub(100, side=500)) == (224, 16)


def test_broken_files_raise_the_share_that_may_be_rejected():
    survey = survey_stub(1000)
    assert settings.choose_max_rejects(survey, None, labels=True) == 0.01
    assert settings.choose_max_rejects(replace(survey, others=1000), None, labels=False) == pytest.approx(0.99)
    unsorted = replace(survey, unclassed=100)
    assert settings.choose_max_rejects(unsorted, None, labels=False) < 0.1
    assert settings.choose_max_rejects(unsorted, None, labels=True) > 0.1
    broken = replace(survey, sample=replace(survey.sample, broken=[("a.jpg", "not an image")] * 10))
    assert 0.5 < settings.choose_max_rejects(broken, None, labels=False) < 1


@pytest.mark.parametrize(("text", "seconds"), [("30m", 1800), ("1.5h", 5400), ("2d", 172_800)])
def test_times_are_read(text: str, seconds: float):
    assert command.parse_time(text) == seconds


@pytest.mark.parametrize("text", ["30", "h", "-1h", "0m", "1 week"])
def test_other_times_are_refused(text: str):
    with pytest.raises(ValueError, match="expected a number and a unit"):
        command.parse_time(text)


# The teacher


def test_published_weights_are_used_only_if_they_can_be_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert published.choose_teacher(None, None) is None
    assert published.choose_teacher("mae", None) is None
    with pytest.raises(ValueError, match="--weights needs --teacher"):
        published.choose_teacher(None, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="remove --weights"):
        published.choose_teacher("mae", tmp_path / "weights.pth")
    monkeypatch.setattr(published, "is_reachable", lambda model: True)
    monkeypatch.setattr(published, "from_timm", lambda model, **options: (FakeNetwork, {}))
    assert published.choose_teacher(None, None) == settings.PublishedTeacher(published.DEFAULT_MODEL, None, 224, 16)


class FakeNetwork:
    """What `choose_teacher` reads of a network."""

    class patch_embed:
        patch_size = (16, 16)


# Files


def test_a_project_is_complete_and_is_not_overwritten(tmp_path: Path):
    result = CliRunner().invoke(app, ["init", str(tmp_path / "new"), "--demo"])
    assert result.exit_code == 0, result.output
    names = {"params.yaml", "dvc.yaml", ".gitignore", "README.md", ".dvcignore"}
    assert names <= {path.name for path in (tmp_path / "new").iterdir()}
    report = YAML().load(tmp_path / "new/dvc.yaml")["stages"]["report"]
    folders = {path for path in report["deps"] if path.startswith("results/") and not Path(path).suffix}
    assert {path for path in folders if (tmp_path / "new" / path).is_dir()} == folders != set()
    again = CliRunner().invoke(app, ["init", str(tmp_path / "new"), "--demo"])
    assert "has params.yaml and dvc.yaml already" in str(again.exception)
    neither = CliRunner().invoke(app, ["init", str(tmp_path / "other")])
    assert "--images PATH" in str(neither.exception)


def test_nothing_is_committed_in_a_repository_of_the_user(tmp_path: Path):
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    result = CliRunner().invoke(app, ["init", str(tmp_path / "new"), "--demo"])
    assert "commit the project before experiments" in result.output
    status = subprocess.run(
        ["git", "-C", tmp_path, "status", "--porcelain"], capture_output=True, text=True, check=True
    )
    assert status.stdout == "?? new/\n"
    assert not (tmp_path / "new/.git").exists()


def test_the_stages_of_a_project_depend_on_the_digest_of_their_code_alone():
    own, repository = YAML().load(project_pipeline())["stages"], YAML().load(Path("dvc.yaml"))["stages"]
    assert list(own) == ["code", *repository]
    for name, entry in repository.items():
        before, after = (stage.get("do", stage) for stage in (entry, own[name]))
        data = [path for path in before["deps"] if not path.startswith(("semmae/", "stages/"))]
        assert after["deps"] == [*data, f"data/code/{name}.txt"]
        assert {key: after[key] for key in after if key != "deps"} == {
            key: before[key] for key in before if key != "deps"
        }


def test_init_measures_and_writes_a_project_for_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(measurements, "MAX_SECONDS", 0.01)
    monkeypatch.setattr(settings, "CPU_TIERS", settings.CPU_TIERS[-1:])
    write_images(tmp_path / "photos", 40, size=(40, 40))
    cv2.imwrite(str(tmp_path / "photos/gray.jpg"), np.zeros((64, 64), np.uint8))
    arguments = ["init", str(tmp_path / "new"), "--images", str(tmp_path / "photos"), "--budget", "10h"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    assert "41" in result.output
    readme = (tmp_path / "new/README.md").read_text()
    assert "## Settings" in readme
    assert "knn, linear and attentive need --labels" in readme
    source = YAML().load(tmp_path / "new/params.yaml")["shards"]["datasets"]["main"]["sources"]["photos"]
    assert (source["kind"], source["path"], source["labels"]) == ("folder", str(tmp_path / "photos"), False)
