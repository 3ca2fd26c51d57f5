"""The evaluation stages on toy artifacts: results, repeated runs, and errors."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer

from semmae.core import distributed, stage
from semmae.data.dataset import Reader
from semmae.evaluation import curve_files, features, linear_heads, scores, subsets
from semmae.evaluation.scores import Scores
from semmae.models import teacher, vit
from semmae.parts import part_methods
from semmae.parts.kmeans_parts import KMeansParts
from stages import attentive, knn, linear, part_scores

CONFIG = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
STAGES = {"attentive": attentive, "knn": knn, "linear": linear, "part_scores": part_scores}
PARAMS = """
evaluations:
  {knn: {toy: {}, gone: {}}, linear: {toy: {epochs: 3}}, attentive: {toy: {epochs: 3}}, part_scores: {toy: {}}}
knn:
  protocol: {k: 20, temperature: 0.07, whiten: false, pool: patch_mean, baselines: true, seed: 0, batch_size: 16,
    compute: {device: cpu, precision: fp32, compile: false, workers: 0}}
linear:
  protocol: {base_lrs: [1.0, 0.1], holdout: 0.25, epochs: 4, warmup_epochs: 1, views: 2, batch_size: 16,
    low_shot: [{per_class: 1}, {share: 0.5}], pool: both, baselines: true, seed: 0,
    encode_batch_size: 16, compute: {device: cpu, precision: fp32, compile: false, workers: 0}}
attentive:
  protocol: {queries: 4, base_lrs: [0.1, 0.01], weight_decays: [0.05, 0.0], holdout: 0.25, epochs: 4, warmup_epochs: 1,
    batch_size: 8, shuffle_shards: null, betas: [0.9, 0.95], baselines: true, seed: 0, checkpoint_minutes: 5,
    compute: {device: cpu, precision: fp32, compile: false, workers: 0}}
part_scores:
  protocol: {num_images: 20, baselines: true, seed: 0, seeds: 2, batch_size: 16,
    compute: {device: cpu, precision: fp32, compile: false, workers: 0}}
"""


@pytest.fixture
def project(tmp_path: Path, toy_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with an untrained encoder, an untrained teacher, and three parts with fixed centroids."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(PARAMS)
    Path("data/shards").mkdir(parents=True)
    Path("data/shards/toy").symlink_to(toy_dataset)
    vit.save(Path("data/pretrain"), vit.build(CONFIG), CONFIG)
    described = CONFIG | {"class_token": False, "mean": vit.MEAN, "std": vit.STD}
    teacher.save_teacher(Path("data/teacher"), vit.build(CONFIG), described)
    learner = KMeansParts(
        {"method": "kmeans", "num_parts": 3, "background": False, "embed_dim": 32, "temperature": 0.1, "img_size": 32,
         "grid": [4, 4], "teacher": teacher.load_teacher(Path("data/teacher")).digest}
    )  # fmt: skip
    learner.centroids.copy_(torch.eye(32)[:3])
    part_methods.save_parts(Path("data/parts"), learner)
    return tmp_path


def start(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> None:
    """Run a stage as `python -m stages.<name> <arguments>` does."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    stage.main(STAGES[name].main)


def written(name: str) -> Scores:
    return scores.read(Path(f"results/{name}/toy.json"))


def written_part_scores() -> dict[str, Scores]:
    return scores.read_groups(Path("results/part_scores/toy.json"))


BASELINES = {
    "knn": ["thumbnail", "untrained", "teacher"],
    "linear": ["thumbnail", "untrained", "teacher"],
    "attentive": ["untrained", "teacher"],
}


@pytest.mark.parametrize("name", BASELINES)
def test_a_stage_writes_the_scores_of_encoder_and_baselines_and_repeats_them(project, monkeypatch, name):
    start(monkeypatch, name, "toy")
    result = written(name)
    metrics = ("top1", "top5", "per_class", "top1_se")
    assert set(metrics) <= set(result.encoder)
    assert all(0 <= result.encoder[metric] <= 1 for metric in metrics)
    assert list(result.baselines) == BASELINES[name]
    assert all(list(baseline) == ["top1", "top1_se"] for baseline in result.baselines.values())
    start(monkeypatch, name, "toy")
    assert written(name) == result
    assert not list((project / "state/runs").glob("*"))


@pytest.mark.parametrize("name", BASELINES)
def test_the_predictions_agree_with_the_scores(project, monkeypatch, name):
    start(monkeypatch, name, "toy")
    found = pd.read_csv(f"results/{name}/predictions/toy.tsv", sep="\t")
    val = Reader(Path("data/shards/toy"), "val")
    assert found["key"].tolist() == val.keys
    assert found["actual"].tolist() == [val.class_names[label] for label in val.labels]
    assert (found["actual"] == found["predicted"]).mean() == pytest.approx(written(name).encoder["top1"])
    assert found["confidence"].between(1 / val.num_classes, 1).all()


def test_whitened_knn_equals_scikit_learn(project, monkeypatch):
    Path("params.yaml").write_text(PARAMS.replace("whiten: false", "whiten: true"))
    start(monkeypatch, "knn", "toy")
    encode = features.build_feature_encoder(
        vit.load(Path("data/pretrain"))[0], pool="patch_mean", device=torch.device("cpu")
    )
    train, val = (Reader(Path("data/shards/toy"), split) for split in ("train", "val"))
    tokens, queries = (features.extract(encode, one, img_size=32, batch_size=16, workers=0) for one in (train, val))
    rank = 31  # the last norm leaves 32 numbers with a mean of 0
    judge = make_pipeline(PCA(rank, whiten=True), Normalizer(), KNeighborsClassifier(20, weights=closeness))
    expected = judge.fit(tokens, train.labels).score(queries, val.labels)
    assert written("knn").encoder["top1"] == pytest.approx(expected)


def closeness(distance: np.ndarray) -> np.ndarray:
    """Compute exp(cosine / 0.07) of unit vectors from their distance."""
    return np.exp((1 - distance**2 / 2) / 0.07)


@pytest.mark.parametrize("name", ["linear", "attentive"])
def test_the_curve_of_a_probe_has_the_epochs_of_its_dataset(project, monkeypatch, name):
    start(monkeypatch, name, "toy")
    found = curve_files.read(Path(f"results/{name}/curves/toy"), "encoder")
    assert list(found) == ["holdout_top1", "lr", "train_loss"]
    assert all([epoch for epoch, _ in points] == [1, 2, 3] for points in found.values())


def test_the_losses_of_a_curve_are_means_over_ranks(project, monkeypatch):
    """A checkpoint stores the curve of a single rank, so all ranks must have the same."""
    curve = Path("results/attentive/curves/toy")
    start(monkeypatch, "attentive", "toy")
    alone = curve_files.read(curve, "encoder")["train_loss"]
    monkeypatch.setattr(
        distributed, "mean", lambda value, world: 2 * value
    )  # as if another rank had three times the loss
    start(monkeypatch, "attentive", "toy")
    assert curve_files.read(curve, "encoder")["train_loss"] == [
        (epoch, pytest.approx(2 * loss)) for epoch, loss in alone
    ]


def test_a_single_sample_per_class_takes_the_learning_rate_of_all_of_train(project, monkeypatch):
    start(monkeypatch, "linear", "toy")
    result = written("linear")
    assert list(result.low_shot) == ["1_per_class", "50_percent"]
    for metrics in result.low_shot.values():
        assert list(metrics) == ["top1", "top5", "per_class", "top1_se", "base_lr"]
    assert result.low_shot["1_per_class"]["base_lr"] == result.encoder["base_lr"]


def test_a_low_shot_probe_uses_only_its_seeded_subset(project, monkeypatch):
    """The learning rate is chosen on a hold-out of the subset, and every run of a seed draws the same subset."""
    Path("params.yaml").write_text(PARAMS.replace("[{per_class: 1}, {share: 0.5}]", "[{share: 0.1}, {share: 0.5}]"))
    predict, choose, learned, chosen = linear_heads.train_and_predict, linear_heads.choose_base_lr, [], []

    def recorded_predict(train, *arguments, **options):
        learned.append(train.indices.tolist())
        return predict(train, *arguments, **options)

    def recorded_choose(train, **options):
        chosen.append((train.indices.tolist(), train.indices[options["held_out"]].tolist()))
        return choose(train, **options)

    monkeypatch.setattr(linear_heads, "train_and_predict", recorded_predict)
    monkeypatch.setattr(linear_heads, "choose_base_lr", recorded_choose)
    labels = Reader(Path("data/shards/toy"), "train").labels
    few, half = (subsets.low_shot(labels, subsets.Shots(share=share), seed=0).tolist() for share in (0.1, 0.5))
    for _ in range(2):
        learned.clear()
        chosen.clear()
        start(monkeypatch, "linear", "toy")
        assert [ids for ids in learned if len(ids) < len(labels)] == [few, half]
        (ids, held_out), *others = [one for one in chosen if len(one[0]) < len(labels)]
        assert ids == half  # the smaller subset has one sample per class, so nothing can be held out
        assert not others
        assert set(held_out) < set(half)


def test_part_scores_are_written_with_baselines_and_references(project, monkeypatch):
    start(monkeypatch, "part_scores", "toy")
    result = written_part_scores()
    patch, pixel = result["patch"], result["pixel"]
    names = {"labels", "fg_iou", "nmi_all", "ari_all", "nmi_fg", "ari_fg", "miou", "consistency", "used"}
    names |= {"background_share"}
    stability = {"stable_shift", "stable_flip", "stable_zoom"}
    clusterings = {"color_kmeans", "untrained_kmeans", "teacher_kmeans", "centered_kmeans", "foreground_kmeans"}
    baselines = clusterings | {"attention_heads", "grid", "position"}
    foreground = {"attention_best_head", "pca_foreground", "normalized_cut"}
    assert set(patch.baselines) == set(pixel.baselines) == baselines | foreground | {"center_mask"}
    assert set(patch.references) == set(pixel.references) == {"readout", "silhouette", "perfect"}
    for level, more in ((patch, {"place"}), (pixel, set())):
        extra = stability if more else set()
        assert set(level.encoder) == names | more | extra
        assert set(level.baselines["centered_kmeans"]) == names | more | extra
        assert all(set(level.baselines[name]) == names | more for name in baselines - {"centered_kmeans"})
        assert all(set(level.baselines[name]) == {"labels", "fg_iou"} for name in foreground)
        assert all(set(level.references[name]) == names | more for name in ("readout", "silhouette"))
        assert set(level.deviations) == clusterings
        assert all(set(level.deviations[name]) == (names | more) - {"labels"} for name in clusterings)
    assert set(patch.references["perfect"]) == {"labels", "place"}
    assert np.isclose(patch.references["silhouette"]["fg_iou"], 1)
    assert pixel.references["perfect"]["fg_iou"] == pixel.references["silhouette"]["fg_iou"] < 1
    start(monkeypatch, "part_scores", "toy")
    assert written_part_scores() == result
    params = Path("params.yaml").read_text()
    params = params.replace("{num_images: 20, baselines: true", "{num_images: 20, baselines: false")
    Path("params.yaml").write_text(params)
    start(monkeypatch, "part_scores", "toy")
    without = {
        name: Scores(level.encoder, {"center_mask": level.baselines["center_mask"]}) for name, level in result.items()
    }
    assert written_part_scores() == without


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("knn", ["tyo"], "knn has no dataset 'tyo'; params.yaml has toy, gone"),
        ("linear", [], "linear has no dataset ''"),
        ("knn", ["gone"], "gone is not a dataset"),
    ],
)
def test_an_unknown_dataset_gives_an_error_of_one_line(project, monkeypatch, capsys, name, arguments, sentence):
    with pytest.raises(SystemExit) as ended:
        start(monkeypatch, name, *arguments)
    assert ended.value.code == 1
    message = capsys.readouterr().err
    assert sentence in message
    assert message.count("\n") == 1
    assert not list(project.glob("results/*/*"))


def test_parts_of_another_teacher_are_refused(project, monkeypatch, capsys):
    described = CONFIG | {"class_token": False, "mean": vit.MEAN, "std": vit.STD}
    teacher.save_teacher(Path("data/teacher"), vit.build(CONFIG), described)
    with pytest.raises(SystemExit):
        start(monkeypatch, "part_scores", "toy")
    assert "learned from another teacher" in capsys.readouterr().err
