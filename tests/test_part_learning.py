"""The benchmark of part learning: its commands run, its noise is reproducible, and its scores have known extremes."""

import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from benchmarks.part_learning import __main__ as command
from benchmarks.part_learning.methods import METHODS, EncodedImages, FittedLabeler, GroupedLearner
from benchmarks.part_learning.scoring import ScoreRow, add_noise, read_rows, score_labeler
from benchmarks.part_learning.tables import paired_differences
from semmae.parts.part_learner import PartLearner
from tests.project import ROOT


def run(*arguments: object) -> None:
    with mock.patch("sys.argv", ["part_learning", *map(str, arguments)]):
        command.main()


def test_the_commands_run(toy_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    shutil.copy(ROOT / "tests/toy/params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    run("taught", "--dataset", toy_dataset, "--out", "taught", "--seeds", 0, "--epochs", 2)
    assert "taught/taught_0: patch accuracy in the foreground" in capsys.readouterr().out
    options = ("--dataset", toy_dataset, "--parts", 3, "--seeds", 0, "--images", 32, "--csv", "scores.csv")
    run("score", "--teachers", "taught/taught_0", "--noise", 0, *options)
    assert {row.method for row in read_rows(Path("scores.csv"))} == set(METHODS)
    capsys.readouterr()
    few = ("--methods", "learned", "plain k-means", "foreground k-means")
    run("score", "--teachers", "taught/taught_0", "--noise", 0, 0.5, *few, *options)
    assert capsys.readouterr().out.count("taught_0") == 2  # only the rows with noise, and not the one with attention
    rows = read_rows(Path("scores.csv"))
    assert len({row.key for row in rows}) == len(rows) == len(METHODS) + 2
    run("table", "scores.csv")
    assert "| difference to: plain k-means (1) |" in capsys.readouterr().out


def test_noise_depends_on_seed_and_split_only():
    patch = torch.zeros(50, 16, 8)
    noisy = add_noise(patch, 1.5, 0, "train")
    assert torch.equal(noisy, add_noise(patch, 1.5, 0, "train"))
    assert not torch.equal(noisy, add_noise(patch, 1.5, 1, "train"))
    assert not torch.equal(noisy, add_noise(patch, 1.5, 0, "val"))
    torch.testing.assert_close(noisy.std(), torch.tensor(1.5), rtol=0.05, atol=0)


def test_true_labels_have_perfect_scores():
    true = np.random.default_rng(0).integers(0, 4, (6, 16))
    images = EncodedImages(
        torch.from_numpy(true)[:, :, None].float(), torch.full((6, 16), 1 / 16), np.eye(4, dtype=int)[true]
    )
    labeler = FittedLabeler(4, lambda patch: patch[:, :, 0].long().numpy(), background=0)
    scores = score_labeler(labeler, images, images, (4, 4))
    assert [scores[name] for name in ("nmi_fg", "ari_fg", "miou", "fg_iou")] == pytest.approx([1.0] * 4)


def test_the_grouped_learner_joins_whole_images():
    keys, share = torch.randn(70, 4, 3), torch.rand(70, 4)
    with mock.patch.object(PartLearner, "compute_keys", return_value=(keys, share)):
        grouped, shares = GroupedLearner.compute_keys(mock.Mock(spec=GroupedLearner), keys)
    assert torch.equal(grouped, keys[:64].reshape(2, 128, 3))
    assert torch.equal(shares, share[:64].reshape(2, 128))


def test_differences_pair_teachers_and_seeds():
    def row(method: str, seed: int, nmi: float) -> ScoreRow:
        return ScoreRow("main", "taught_0", 0.0, 8, method, seed, nmi, 0.0, 0.0, 0.0, 0.0, 9, 0.3)

    rows = [row("learned", 0, 0.5), row("learned", 1, 0.7), row("plain k-means", 1, 0.4), row("plain k-means", 2, 0.1)]
    assert paired_differences(rows, "plain k-means")["nmi_fg"] == pytest.approx([0.3])
