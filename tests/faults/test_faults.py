"""Bad input ends a stage with one sentence and exit status 1, and existing files stay."""

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from semmae.cli import doctor
from semmae.parts import part_maps
from stages import pretrain
from tests.project import AUTHOR, Project, call, create_empty


def contents() -> dict[str, str]:
    """Return the digest of every file in data and results."""
    files = [path for root in ("data", "results") for path in Path(root).rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize(
    ("command", "key", "value", "sentence"),
    [
        ("shards toy", "shards.datasets.toy.sources.pictures.path", "nowhere", "data/raw/nowhere is not a folder"),
        ("shards toy", "shards.datasets.toy.sources.pictures.splits", ["train", "test"], "no images in split 'test'"),
        ("shards photos", "", None, "shards has no dataset 'photos'; params.yaml has toy"),
        ("knn photos", "", None, "knn has no dataset 'photos'; params.yaml has toy"),
        ("linear photos", "", None, "linear has no dataset 'photos'; params.yaml has toy"),
        ("part_scores photos", "", None, "part_scores has no dataset 'photos'; params.yaml has toy"),
        ("teacher", "teacher.dataset", "photos", "data/shards/photos"),
        ("teacher", "teacher.source", "dino", "teacher.source is 'dino'; expected one of"),
        ("teacher", "teacher.mae.recipe.epochs", "ten", "teacher.mae.recipe.epochs is 'ten'"),
        ("teacher", "teacher.img_size", 30, "30"),
        (
            "parts",
            "parts.method",
            "guess",
            "parts.method is 'guess'; expected one of 'learned', 'paper', 'kmeans', 'attention', 'grid' or 'truth'",
        ),
        ("parts", "parts.color", 1, "unknown key parts.color"),
        ("part_maps", "part_maps.attention", None, "part_maps.attention is None"),
        ("part_maps", "part_maps.batch_size", 0, "part_maps.batch_size is 0; Input should be greater than 0"),
        ("pretrain", "pretrain.masking.strategy", "semantc", "pretrain.masking.strategy is 'semantc'; expected one of"),
        ("pretrain", "pretrain.dataset", "photos", "data/shards/photos"),
        ("pretrain", "pretrain.recipe.batch_size", 65, "pretrain: batch_size is 65, but an epoch has 64 samples"),
        ("pretrain", "pretrain.compute.device", "cuda", "device is cuda, but torch finds no GPU"),
        ("report", "report.colors", "gray", "gray"),
    ],
)
def test_a_wrong_parameter_is_named_and_no_file_changes(
    inside: Project, command: str, key: str, value: Any, sentence: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    if key:
        inside.set(key, value)
    before = contents()
    with pytest.raises(SystemExit) as caught:
        call(*command.split())
    assert caught.value.code == 1
    output = capsys.readouterr().err.splitlines()
    assert len(output) == 1, output
    assert output[0].startswith("error: ")
    assert sentence in output[0]
    assert contents() == before


def test_a_missing_key_is_named(inside: Project, capsys: pytest.CaptureFixture[str]):
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("    mask_ratio: 0.75\n    curriculum", "    curriculum"))
    with pytest.raises(SystemExit):
        call("pretrain")
    assert capsys.readouterr().err == "error: params.yaml: missing key pretrain.masking.mask_ratio; add it\n"


def test_part_maps_of_another_teacher_are_refused(inside: Project, capsys: pytest.CaptureFixture[str]):
    inside.set("teacher.seed", 1)
    call("teacher")
    before = contents()
    for command, sentence in (
        ("pretrain", "was made with teacher"),
        ("part_maps", "data/parts was learned from another teacher than the current one; run dvc repro parts"),
        ("part_scores toy", "data/parts was learned from another teacher"),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            call(*command.split())
        assert caught.value.code == 1
        assert sentence in capsys.readouterr().err
    assert contents() == before


def test_a_run_with_changed_part_maps_is_not_resumed(inside: Project, monkeypatch: pytest.MonkeyPatch):
    inputs_of_runs = []

    def begin(*_: object, inputs: list[str], **__: object) -> None:
        inputs_of_runs.append(inputs)
        raise FloatingPointError("enough")

    monkeypatch.setattr(pretrain, "Run", begin)
    maps = Path("data/part_maps/toy/train-000001.parquet")
    for change in (False, False, True):
        if change:
            old = part_maps.read(maps)
            maps.chmod(0o644)
            flipped = old.channels | {"part_map": old.channels["part_map"][:, ::-1]}
            part_maps.write(maps, keys=old.keys, channels=flipped, metadata=old.metadata)
        with pytest.raises(SystemExit):
            call("pretrain")
    assert inputs_of_runs[0] == inputs_of_runs[1]
    assert len(set(inputs_of_runs[0]) - set(inputs_of_runs[2])) == 1


def test_a_truncated_image_is_counted_and_too_many_of_them_stop_the_stage(
    inside: Project, capsys: pytest.CaptureFixture[str]
):
    image = next(iter(Path("data/raw/pictures/images/train").glob("*/*.png")))
    image.write_bytes(image.read_bytes()[:200])
    call("shards", "toy")
    assert "63 train, 32 val" in (output := capsys.readouterr().out)
    assert "1 of 96 inputs rejected" in output

    inside.set("shards.writing.max_rejects", 0.01)
    before = contents()
    with pytest.raises(SystemExit) as caught:
        call("shards", "toy")
    assert caught.value.code == 1
    output = capsys.readouterr().err
    assert output.startswith("error: 1 of 96 inputs are rejected, max_rejects allows 1.00%")
    assert image.name in output
    assert contents() == before


@pytest.mark.parametrize(
    "command", ["pretrain", "teacher", "parts", "part_maps", "knn toy", "linear toy", "part_scores toy"]
)
def test_a_damaged_shard_stops_a_stage_before_its_first_step(
    inside: Project, command: str, capsys: pytest.CaptureFixture[str]
):
    shard = Path("data/shards/toy/train-000001.tar")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(data)
    with pytest.raises(SystemExit):
        call(*command.split())
    output = capsys.readouterr()
    assert "train-000001.tar is damaged" in output.err
    assert "epoch" not in output.err + output.out


def test_a_file_that_a_killed_dvc_has_truncated_is_found_and_can_be_removed(toy: Project):
    before, lock = toy.folder / "data/pretrain/encoder.safetensors", toy.folder / "dvc.lock"
    lock_content, bits = lock.read_text(), before.read_bytes()
    for damaged in (lock, toy.folder / ".dvc/tmp/rwlock"):
        damaged.write_text("")  # opened for writing, then killed
    assert set(doctor.truncated_files(toy.folder)) == {lock, toy.folder / ".dvc/tmp/rwlock"}
    for damaged in doctor.truncated_files(toy.folder):
        assert (
            "JSON structure is corrupted" in (output := toy.dvc("repro", expect=255)) or "validation failed" in output
        )
        damaged.unlink()
    assert "Running stage" not in toy.dvc("repro")  # the run cache had every stage
    assert (lock.read_text(), before.read_bytes()) == (lock_content, bits)


def test_an_entry_of_the_run_cache_that_a_killed_dvc_has_left_is_found_and_removed(toy: Project):
    runs = toy.folder / ".dvc/cache/runs"
    (entry,) = (run for run in runs.glob("*/*/*") if "stages.report" in run.read_text())
    unfinished = entry.rename(entry.with_name(".Ab1.tmp"))
    unfinished.write_text(unfinished.read_text().partition("outs:")[0])  # the written part can be read
    (toy.folder / "dvc.lock").unlink()
    assert "failed to reproduce 'report': 'outs'" in toy.dvc("repro", "--single-item", "report", expect=255)
    assert list(doctor.incomplete_cache_entries(runs)) == [entry.parent]
    unfinished.unlink()  # DVC does this with an entry that it cannot read
    assert "failed to reproduce 'report': join()" in toy.dvc("repro", "--single-item", "report", expect=255)
    assert list(doctor.incomplete_cache_entries(runs)) == [entry.parent]
    assert any(check.verdict == "warn" and str(entry.parent) in check.remedy for check in doctor.examine(toy.folder))
    entry.parent.rmdir()
    assert "Running stage 'report'" in toy.dvc("repro")
    (entry,) = entry.parent.iterdir()
    (temporary := entry.with_name(".Ab2.tmp")).touch()
    assert list(doctor.incomplete_cache_entries(runs)) == [temporary]  # the complete entry is not listed


def test_a_clone_of_another_owner_reproduces_and_an_experiment_fails_with_the_reason(tmp_path: Path):
    if os.geteuid():
        pytest.skip("only root can give a folder away")
    project = create_empty(tmp_path)
    (project.folder / "dvc.yaml").write_text("stages:\n  only: {cmd: touch only.txt, outs: [only.txt]}\n")
    project.run("git", "add", ".")
    project.run("git", "commit", "--quiet", "--message", "only", **AUTHOR)
    for path in (project.folder, *project.folder.rglob("*")):
        os.chown(path, 1234, 1234)
    assert "Running stage 'only'" in project.dvc("repro")
    assert "is not owned by current user" in project.dvc("exp", "run", expect=255, **AUTHOR)
