"""The schema of the scores: metrics of the encoder flat, all else in named sections."""

from pathlib import Path

import pytest

from semmae.core.atomic_files import read_json, write_json
from semmae.evaluation import scores
from semmae.evaluation.scores import Scores

FEW = Scores(
    {"top1": 0.5, "base_lr": 0.1}, baselines={"teacher": {"top1": 0.75}}, low_shot={"5_per_class": {"top1": 0.25}}
)


def test_the_file_has_short_names_for_the_encoder_and_named_sections(tmp_path: Path):
    path = tmp_path / "linear/toy.json"
    scores.write(path, FEW)
    assert read_json(path) == {
        "linear": {
            "toy": {
                "top1": 0.5,
                "base_lr": 0.1,
                "baselines": {"teacher": {"top1": 0.75}},
                "low_shot": {"5_per_class": {"top1": 0.25}},
            }
        }
    }
    assert scores.read(path) == FEW


def test_groups_have_one_level_more(tmp_path: Path):
    path = tmp_path / "segment/a.b.json"
    groups = {"linear": Scores({"miou": 0.5}, class_iou={"sky": 0.5, "sea": None}), "knn": Scores({"miou": 0.25})}
    scores.write(path, groups)
    assert scores.read_groups(path) == groups


def test_a_file_of_another_schema_is_refused(tmp_path: Path):
    path = tmp_path / "knn/toy.json"
    write_json(path, {"knn": {"toy": {"top1": 0.5, "untrained": {"top1": 0.25}}}})
    with pytest.raises(ValueError, match=r"the value of 'untrained'; .* dvc repro -f knn@toy"):
        scores.read(path)
    with pytest.raises(ValueError, match="unknown schema"):
        scores.read_groups(path)
