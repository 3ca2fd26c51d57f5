"""The report of toy runs: for every strategy one file that needs nothing else, true to its run, safe with any name."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML

from semmae import artifact, mae, part_maps, parts, teacher, vit
from semmae.masking import STRATEGIES
from semmae.reader import Reader, batches
from semmae.views import Whole
from stages import report

SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
DECODER = {"embed_dim": 16, "depth": 1, "num_heads": 2}
SECTION = {"colours": "okabe_ito", "overlays": 3, "film": 2, "reconstructions": 2, "sample": 8, "seed": 0}
HISTORY = [{"epoch": 1, "loss": 2.0, "lr": 0.1, "knn_top1": 0.25}, {"epoch": 2, "loss": 1.0, "lr": 0.05}]
EVALUATIONS = ("knn", "linear", "attentive", "finetune", "segment", "part_scores")
KNN = {"top1": 0.5, "top5": 0.9, "per_class": 0.48, "standard_error": 0.03, "untrained": {"top1": 0.4}}


@pytest.fixture(params=STRATEGIES)
def strategy(request):
    return request.param


@pytest.fixture
def folder(toy_dataset, tmp_path, monkeypatch):
    """A folder as the stages before the report leave it: nothing is trained, and nothing was evaluated."""
    monkeypatch.chdir(tmp_path)
    Path("data/shards").mkdir(parents=True)
    Path("data/shards/toy").symlink_to(toy_dataset)
    return tmp_path


def leave_run(strategy: str, *, dataset: str = "toy", method: str = "learned", history: list | None = None) -> None:
    """Write what the stages write, from networks with fresh weights."""
    history = HISTORY if history is None else history
    torch.manual_seed(0)
    known = {"mean": vit.MEAN, "std": vit.STD}
    taught = {"source": "mae", "class_token": False, "params": {"dataset": dataset, "seed": 0}}
    teacher.save(Path("data/teacher"), vit.build(SIZE), SIZE | known | taught)
    elder = teacher.load(Path("data/teacher"))

    config = {"method": method, "num_parts": 3, "background": method == "learned", "width": 32, "grid": [4, 4]}
    config |= {"img_size": 32, "temperature": 0.1, "decoder_width": 8, "decoder_depth": 1, "values": 32}
    config |= {"class_token": False, "params": {"method": method}}
    learner = parts.METHODS[method](config)
    torch.nn.init.normal_(learner.place)
    parts.save(Path("data/parts"), learner)
    learner = parts.load(Path("data/parts"))

    reader = Reader(Path("data/shards") / dataset)
    digests = {shard["file"]: shard["sha256"] for shard in reader.meta["shards"]}
    known_of = {"grid": [4, 4], "num_parts": 3, "background": learner.background}
    known_of |= {"teacher": elder.digest, "parts": learner.digest}
    for name, sha256 in digests.items():
        rows = reader.select(np.flatnonzero(np.array(reader.shards) == name))
        (batch,) = batches(rows, np.arange(len(rows)), Whole(32, 0, 0.0), batch_size=len(rows), workers=0)
        tokens = elder.encode(batch["image"])
        part_maps.write(
            Path("data/part_maps") / dataset / f"{Path(name).stem}.parquet", keys=rows.keys,
            part_maps=learner.assign(tokens).argmax(1).to(torch.uint8).numpy(),
            attention=part_maps.quantise_attention(tokens.attention.numpy()), metadata=known_of | {"shard": sha256},
        )  # fmt: skip
    maps = part_maps.join(Path("data/part_maps") / dataset, reader, teacher=None, parts=None)
    artifact.write_json(Path("results/part_maps/metrics.json"), {"part_maps": part_maps.summary(maps)})

    masking = {"strategy": strategy, "mask_ratio": 0.75, "inter_part": {"start": 0.0, "end": 1.0, "power": 2.0}}
    run = {"dataset": dataset, "seed": 7, "img_size": 32, "masking": masking}
    run |= {"encoder": {name: SIZE[name] for name in SIZE if name != "img_size"}}
    run |= {"recipe": {"epochs": 2, "batch_size": 8, "norm_pix_loss": True, "decoder": DECODER}}
    model = mae.MAE(vit.build(SIZE), **DECODER)
    encoder = SIZE | known | {"params": run}
    mae.save(Path("data/pretrain"), model, encoder=encoder, decoder=DECODER | {"norm_pix_loss": True})
    for stage in ("teacher", "parts", "pretrain"):
        artifact.write_json(Path("data") / stage / "history.json", history)
        artifact.write_json(Path("results") / stage / "metrics.json", {stage: {"knn_top1": 0.125}})


def write_params(**evaluated: list[str]) -> None:
    """params.yaml as far as the report reads it; `evaluated` lists datasets per evaluation."""
    sections = {name: {"datasets": {d: {} for d in evaluated.get(name, [])}} for name in EVALUATIONS}
    YAML().dump({"report": SECTION, **sections}, Path("params.yaml"))


def page() -> str:
    """The page that the stage writes."""
    report.main()
    return Path("results/report/index.html").read_text()


class Tags(HTMLParser):
    """Every tag with its attributes, and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


def test_every_strategy_has_a_page_that_needs_nothing_else(folder, strategy):
    leave_run(strategy)
    write_params()
    text = page()
    found = Tags(text)
    sources = [attrs["src"] for _, attrs in found.tags if "src" in attrs]
    # 4 in the header; pairs; up to nine regions per label; an image and five frames; four columns
    assert len(sources) >= 4 + 2 * SECTION["overlays"] + 6 * SECTION["film"] + 4 * SECTION["reconstructions"] + 9
    assert all(source.startswith("data:image/webp;base64,") for source in sources)
    assert all(attrs["href"].startswith("#") for _, attrs in found.tags if "href" in attrs)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in found.tags}
    assert not re.search(r"https?:|//[a-z]|url\(|@import", re.sub(r"data:image/webp;base64,[^\"]+", "", text))
    words = " ".join(" ".join(found.words).split())
    assert ("weight of whole parts" in words) == ("weight 0.25" in words) == (strategy == "semantic")
    assert ("five draws" in words) == (strategy != "semantic")
    assert "pretrain.masking.strategy" in words
    assert "No scores" in words
    assert sum(tag == "polyline" for tag, _ in found.tags) == 9  # loss, lr and kNN of three stages


def test_scores_are_those_that_params_list(folder):
    leave_run("random")
    for name in ("toy", "gone"):
        artifact.write_json(Path(f"results/knn/{name}.json"), {"knn": {name: KNN}})
    levels = {"patch": {"fg_iou": 0.512}, "pixel": {"fg_iou": 0.498}}
    scored = levels | {"centre_mask": {"patch": {"fg_iou": 0.25}, "pixel": {"fg_iou": 0.24}}}
    artifact.write_json(Path("results/part_scores/toy.json"), {"part_scores": {"toy": scored}})
    write_params(knn=["toy"], linear=["not yet"], part_scores=["toy"])
    words = " ".join(Tags(page()).words)
    assert all(
        said in words for said in ("kNN on toy", "50.0", "± 3.0", "untrained encoder", "0.512", "0.498", "0.250")
    )
    assert "gone" not in words
    assert "not yet" not in words


def test_a_teacher_without_history_and_kmeans_parts(folder):
    leave_run("attention", method="kmeans", history=[])
    write_params()
    words = " ".join(Tags(page()).words)
    assert "Nothing was trained here" in words
    assert "kNN top-1 0.125" in words
    assert "and a background" not in words


def test_names_are_only_text(folder, toy_dataset):
    """A dataset, a class and a line called like markup."""
    name = "<script>alert(1)<"
    Path(f"data/shards/{name}").symlink_to(toy_dataset)
    leave_run("random", dataset=name)
    scores = KNN | {"<script>": {"top1": 0.1}}
    artifact.write_json(Path(f"results/knn/{name}.json"), {"knn": {name: scores}})
    write_params(knn=[name])
    found = Tags(page())
    assert "script" not in {tag for tag, _ in found.tags}
    assert "alert(1)" in " ".join(found.words)


def test_the_same_run_gives_the_same_page(folder):
    leave_run("semantic")
    write_params()
    assert page() == page()


@pytest.mark.parametrize("key", ["overlays", "film"])
def test_params_are_checked(folder, key):
    leave_run("random")
    YAML().dump({"report": SECTION | {key: 0}}, Path("params.yaml"))
    with pytest.raises(ValueError, match=rf"report\.{key} is 0"):
        report.main()
