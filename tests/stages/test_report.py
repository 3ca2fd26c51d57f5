"""The report of toy runs: one file per run, complete, correct, and safe with any name of a dataset or class."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from ruamel.yaml import YAML

from semmae.core.atomic_files import write_json
from semmae.data import decoding
from semmae.data.dataset import Reader
from semmae.data.loader import batches
from semmae.data.transforms import FullImage
from semmae.evaluation import curve_files, predictions, scores
from semmae.evaluation.scores import Scores
from semmae.models import mae, teacher, vit
from semmae.models.masking import STRATEGIES
from semmae.parts import part_maps, part_methods
from stages import report
from tests.report.html_page import HtmlPage

SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
DECODER = {"embed_dim": 16, "depth": 1, "num_heads": 2}
SECTION = {
    "colors": "okabe_ito", "overlays": 3, "views": 2, "masks": 2, "reconstructions": 2, "num_images": 8, "seed": 0,
}  # fmt: skip
HISTORY = [{"epoch": 1, "loss": 2.0, "lr": 0.1, "knn_top1": 0.25}, {"epoch": 2, "loss": 1.0, "lr": 0.05}]
EVALUATIONS = ("knn", "linear", "attentive", "finetune", "segment", "part_scores")
KNN = Scores(
    {"top1": 0.5, "top5": 0.9, "per_class": 0.48, "top1_se": 0.03}, {"untrained": {"top1": 0.4, "top1_se": 0.04}}
)


@pytest.fixture(params=STRATEGIES)
def strategy(request):
    return request.param


@pytest.fixture
def folder(toy_dataset, tmp_path, monkeypatch):
    """A folder with the shards of the toy dataset, before any other stage."""
    monkeypatch.chdir(tmp_path)
    Path("data/shards").mkdir(parents=True)
    Path("data/shards/toy").symlink_to(toy_dataset)
    return tmp_path


def leave_run(strategy: str, *, dataset: str = "toy", method: str = "learned", history: list | None = None) -> None:
    """Write the artifacts of the stages before the report, with untrained networks."""
    history = HISTORY if history is None else history
    torch.manual_seed(0)
    known = {"mean": vit.MEAN, "std": vit.STD}
    source = {"source": "mae", "class_token": False, "steps": 0, "params": {"dataset": dataset, "seed": 0}}
    teacher.save_teacher(Path("data/teacher"), vit.build(SIZE), SIZE | known | source)
    frozen_teacher = teacher.load_teacher(Path("data/teacher"))

    config = {"method": method, "num_parts": 3, "background": method == "learned", "embed_dim": 32, "grid": [4, 4]}
    config |= {"img_size": 32, "temperature": 0.1, "keys": "content", "smoothing_steps": 1}
    config |= {"params": {"method": method}, "teacher": frozen_teacher.digest}
    learner = part_methods.PART_METHODS[method](config)
    if method == "learned":
        torch.nn.init.normal_(learner.queries)
        torch.nn.init.normal_(learner.keys.foreground.axis)
    else:
        torch.nn.init.normal_(learner.centroids)
    part_methods.save_parts(Path("data/parts"), learner)
    learner = part_methods.load_parts(Path("data/parts"))

    reader = Reader(Path("data/shards") / dataset)
    digests = {shard["file"]: shard["sha256"] for shard in reader.meta["shards"]}
    known_of = {"grid": [4, 4], "num_parts": 3, "background": learner.background}
    known_of |= {"teacher": frozen_teacher.digest, "parts": learner.digest}
    for name, sha256 in digests.items():
        rows = reader.select(np.flatnonzero(np.array(reader.shards) == name))
        (batch,) = batches(rows, np.arange(len(rows)), FullImage(32, 0, 0.0), batch_size=len(rows), workers=0)
        tokens = frozen_teacher.encode(batch["image"])
        part_maps.write(
            Path("data/part_maps") / dataset / f"{Path(name).stem}.parquet", keys=rows.keys,
            channels={
                "part_map": learner.assign(tokens).argmax(1).to(torch.uint8).numpy(),
                "attention": part_maps.quantize_attention(tokens.attention.numpy()),
            },
            metadata=known_of | {"shard": sha256},
        )  # fmt: skip
    maps = part_maps.join(Path("data/part_maps") / dataset, reader, teacher=None, parts=None)
    write_json(Path("results/part_maps/metrics.json"), {"part_maps": part_maps.summarize(maps)})

    masking = {"strategy": strategy, "mask_ratio": 0.75, "curriculum": {"start": 0.0, "end": 1.0, "power": 2.0}}
    run = {"dataset": dataset, "seed": 7, "img_size": 32, "masking": masking}
    run |= {"encoder": {name: SIZE[name] for name in SIZE if name != "img_size"}}
    run |= {"recipe": {"epochs": 2, "steps": None, "batch_size": 8, "norm_pix_loss": True, "decoder": DECODER}}
    model = mae.MAE(vit.build(SIZE), **DECODER)
    encoder = SIZE | known | {"steps": 10, "params": run}
    mae.save(Path("data/pretrain"), model, encoder=encoder, decoder=DECODER | {"norm_pix_loss": True})
    for stage in ("teacher", "parts", "pretrain"):
        write_json(Path("data") / stage / "history.json", history)
        write_json(Path("results") / stage / "metrics.json", {stage: {"knn_top1": 0.125}})


def write_params(**evaluated: list[str]) -> None:
    """Write the sections of params.yaml that the report reads; `evaluated` lists datasets per evaluation."""
    sections: dict[str, Any] = {name: {"protocol": {"seed": 0}} for name in EVALUATIONS}
    sections["evaluations"] = {name: {d: {} for d in evaluated.get(name, [])} for name in EVALUATIONS}
    stages = {"shards": {"writing": {"short_side": 77}, "datasets": {}}, "part_maps": {"attention": True}}
    YAML().dump({"report": SECTION, **stages, **sections}, Path("params.yaml"))


def leave_evaluations(class_name: str) -> None:
    """Write results of linear and segment on the dataset toy; `class_name` is also a key that the shards lack."""
    val = Reader(Path("data/shards/toy"), "val")
    table = pd.DataFrame(
        [(val.keys[0], "cat", "dog", 0.75), (class_name, "dog", class_name, 0.5), (val.keys[1], "cat", "cat", 0.9)],
        columns=list(predictions.COLUMNS),
    )
    curve = [{"epoch": 1, "holdout_top1": 0.25}, {"epoch": 2, "holdout_top1": 0.5}]
    scores.write(Path("results/linear/toy.json"), replace(KNN, low_shot={"5_per_class": {"top1": 0.125}}))
    curve_files.write(Path("results/linear/curves/toy"), {"encoder": curve, "5_per_class": curve})
    Path("results/linear/predictions").mkdir()
    table.to_csv("results/linear/predictions/toy.tsv", sep="\t", index=False)

    score = Scores({"miou": 0.375, "miou_se": 0.012, "pixel_accuracy": 0.75}, class_iou={"sky": 0.5, class_name: None})
    scores.write(Path("results/segment/toy.json"), {"upernet": score, "linear": score})
    for head in ("upernet", "linear"):
        folder = Path("results/segment/examples/toy", head)
        folder.mkdir(parents=True)
        for index in range(2):
            (folder / f"{val.keys[index]}.png").write_bytes(decoding.encode_png(val.mask(index) % 2))


def write_page() -> str:
    """Run the stage and return the page."""
    report.main()
    return Path("results/report/index.html").read_text()


def test_every_strategy_has_a_page_that_needs_nothing_else(folder, strategy):
    leave_run(strategy)
    write_params()
    text = write_page()
    page = HtmlPage(text)
    sources = [attrs["src"] for _, attrs in page.tags if "src" in attrs]
    images = Counter(page.images)
    assert images["parts in color"] == 1  # in the header
    assert images["parts"] == images["plain k-means"] == images["truth"] == SECTION["overlays"]
    assert sum(images[f"masked, frame {frame}"] for frame in range(1, 6)) == 5 * SECTION["masks"]
    assert images["reconstruction"] == SECTION["reconstructions"] + 1
    assert all(images[f"{title} with parts"] == SECTION["views"] for title in ("image", "shifted", "flipped", "zoomed"))
    assert 0 < images["typical region"] <= SECTION["num_images"] * 4  # of three parts and the background
    assert all(source.startswith("data:image/webp;base64,") for source in sources)
    assert all(attrs["href"].startswith("#") for _, attrs in page.tags if "href" in attrs)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?:|//[a-z]|url\(|@import", re.sub(r"data:image/webp;base64,[^\"]+", "", text))
    words = page.text
    assert ("curriculum weight" in words) == ("weight 0.25" in words) == (strategy == "semantic")
    assert ("no curriculum" in words) == (strategy != "semantic")
    assert "pretrain.masking.strategy" in words
    assert "No evaluation was run" in words
    assert "Pretraining had 10 steps in all; below 500 expect little. No score compares the encoder" in words
    assert "visible patches are copied from the image, and masked ones are predicted" in words
    assert "2 epochs, 10 steps, batch size 8" in words
    assert page.count("polyline") == 9  # loss, lr and kNN of three stages


def test_only_datasets_of_params_yaml_are_shown(folder):
    leave_run("random")
    for name in ("toy", "gone"):
        scores.write(Path(f"results/knn/{name}.json"), KNN)
    patch = Scores({"fg_iou": 0.512, "place": 0.81}, {"center_mask": {"fg_iou": 0.25}})
    pixel = Scores({"fg_iou": 0.498}, {"center_mask": {"fg_iou": 0.24}})
    scores.write(Path("results/part_scores/toy.json"), {"patch": patch, "pixel": pixel})
    write_params(knn=["toy"], linear=["not yet"], part_scores=["toy"])
    words = HtmlPage(write_page()).text
    assert all(
        text in words
        for text in (
            "kNN on toy",
            "50.0",
            "± 3.0",
            "within noise in kNN on toy",
            "untrained encoder",
            "0.512",
            "0.498",
            "0.250",
            "explains 81 %",
        )
    )
    assert "gone" not in words
    assert "not yet" not in words


def test_mistakes_segmented_images_and_curves_are_shown(folder):
    leave_run("random")
    odd = '<u>"odd"</u>'
    leave_evaluations(odd)
    write_params(linear=["toy"], segment=["toy"], knn=["not yet"])
    page = HtmlPage(write_page())
    words = page.text
    assert "5 per class: 12.5" in words
    assert "toy: linear probe 2 of 3 images" in words
    assert "cat → dog, 75" in words
    assert f"dog → {odd}, 50" in words
    assert "mask predicted by linear head, frozen; UPerNet, fine-tuned." in words
    assert "0.375 ± 0.012" in words
    assert all(text in words for text in ("linear probe on toy", "holdout top-1", "50 %"))
    first = page.images.index("true mask")
    assert page.images[first - 1 : first + 7] == 2 * [
        "image",
        "true mask",
        "linear head, frozen",
        "UPerNet, fine-tuned",
    ]
    assert page.images.count("cat, predicted as dog") == 1
    assert odd in [attrs.get("title") for _, attrs in page.tags]
    assert "u" not in {tag for tag, _ in page.tags}


def test_parameters_are_those_of_the_run_and_of_its_evaluations(folder):
    leave_run("random")
    leave_evaluations("dog")
    write_params(linear=["toy", "not yet"], knn=["not yet"])
    words = HtmlPage(write_page()).text
    expected = ("shards.writing.short_side 77", "teacher.seed 0", "parts.method learned", "part_maps.attention true")
    expected += ("pretrain.seed 7", "linear.protocol.seed 0", "evaluations.linear.toy {}")
    assert [name for name in expected if name not in words] == []
    assert words.index("part_maps.attention") < words.index("pretrain.seed") < words.index("linear.protocol")
    assert "knn.protocol" not in words
    assert "not yet" not in words


def test_a_run_without_training_curves_and_background(folder):
    leave_run("attention", method="kmeans", history=[])
    write_params()
    words = HtmlPage(write_page()).text
    assert "This stage has no curves" in words
    assert "kNN top-1 0.125" in words
    assert "and a background" not in words


def test_markup_in_names_is_escaped(folder, toy_dataset):
    """A dataset, a class and a baseline have names with markup."""
    name = "<script>alert(1)<"
    Path(f"data/shards/{name}").symlink_to(toy_dataset)
    leave_run("random", dataset=name)
    scores.write(Path(f"results/knn/{name}.json"), replace(KNN, baselines={"<script>": {"top1": 0.1}}))
    write_params(knn=[name])
    page = HtmlPage(write_page())
    assert "script" not in {tag for tag, _ in page.tags}
    assert "alert(1)" in page.text


def test_the_same_run_gives_the_same_page(folder):
    leave_run("semantic")
    write_params()
    assert write_page() == write_page()


@pytest.mark.parametrize("key", ["overlays", "views", "masks"])
def test_params_are_checked(folder, key):
    leave_run("random")
    YAML().dump({"report": SECTION | {key: 0}}, Path("params.yaml"))
    with pytest.raises(ValueError, match=rf"report\.{key} is 0"):
        report.main()
