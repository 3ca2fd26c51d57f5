"""report: one page that shows the run: scores, curves, parts, masks, reconstructions, params. One file, no network.

    python -m stages.report

Reads  data/pretrain, data/parts, data/teacher and what they say of themselves; data/part_maps/<pretrain.dataset>;
       data/shards; results/{teacher,parts,part_maps}/metrics.json and, of the datasets that params.yaml lists, what
       knn, linear, attentive, finetune, segment and part_scores have left in results/
Calls  figures, overlays, soft_maps, curves, tables, evaluations; stages/report.html is the page's template
Writes results/report/index.html
"""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass

from semmae.core import stage
from semmae.core.atomic_files import atomic_write, read_json
from semmae.core.config import STRICT, load_config
from semmae.core.model_files import model_digest
from semmae.core.rng import numpy_generator
from semmae.data.dataset import Reader
from semmae.evaluation.scores import read, read_groups
from semmae.models import mae, teacher
from semmae.parts import part_learner, part_maps
from semmae.report import charts as curves
from semmae.report import figures, heat_maps, overlays, tables
from semmae.report import gallery as evaluations
from semmae.report.palettes import GRAY, palette

OUT, RESULTS, SHARDS, PART_MAPS = Path("results/report"), Path("results"), Path("data/shards"), Path("data/part_maps")
TEACHER, PARTS, PRETRAIN = Path("data/teacher"), Path("data/parts"), Path("data/pretrain")
SPLITS = ("val", "test", "train")  # images come from the first that exists: rather not those that were learned from
PROTOCOLS = {
    "knn": "kNN", "linear": "linear probe", "attentive": "attentive probe", "finetune": "fine-tuning",
}  # fmt: skip
EVALUATIONS = (*PROTOCOLS, "segment", "part_scores")
ANSWERS = ("attentive", "linear", "finetune", "knn")  # whose mistakes are shown: the first that a dataset has
CURVES = {  # titles of the columns of a history
    "lr": "learning rate", "curriculum_weight": "weight of whole parts", "knn_top1": "kNN top-1",
    "readout_iou": "supervised read-out, foreground IoU",
}  # fmt: skip
SHARES = ("knn_top1", "readout_iou")  # columns in percent
CROP, TYPICAL = 168, 9  # pixels of a region, and how many per part


@dataclass(frozen=True, config=STRICT)
class ReportConfig:
    """The section `report` of params.yaml."""

    colors: str
    overlays: PositiveInt
    film: PositiveInt
    reconstructions: PositiveInt
    num_images: PositiveInt
    seed: int


def main() -> None:
    """Gather what there is and write the page."""
    section = load_config(ReportConfig, "report")
    encoder, elder = read_json(PRETRAIN / "encoder.json"), teacher.load_teacher(TEACHER)
    learner = part_learner.load_parts(PARTS, teacher=elder.digest)
    if "params" not in encoder:
        raise ValueError(
            f"{PRETRAIN} holds an imported encoder, which no run here has trained; its scores are in results/"
        )
    dataset = encoder["params"]["dataset"]
    meta = read_json(SHARDS / dataset / "shards.json")
    split = next(name for name in SPLITS if name in meta["samples"])
    reader = Reader(SHARDS / dataset, split)
    maps = part_maps.join(PART_MAPS / dataset, reader, teacher=elder.digest, parts=learner.digest)
    tones = palette(section.colors, learner.num_parts)
    digests = {
        "teacher": elder.digest,
        "parts": learner.digest,
        "encoder": model_digest(PRETRAIN, "encoder"),
    }
    content = {
        "run": encoder["params"], "teacher": elder.config, "parts": learner.config, "shards": meta, "split": split,
        "scores": list(scores()), "part_scores": list(part_scores()), "curves": [*histories(), *learned()],
        "answers": list(answers()), "segmentations": list(segmentations(section.colors)),
        "overlays": [
            [uri(picture) for picture in figures.pair(reader, maps, index, colors=tones)]
            for index in figures.choose(len(reader), count=section.overlays, seed=section.seed)
        ],
        "gallery": gallery(section, reader, elder, learner, tones),
        **strips(section, reader, maps, encoder["params"]["masking"], tones),
        "settings": settings(
            teacher=elder.config["params"], parts=learner.config["params"], pretrain=encoder["params"]
        ),
        "digests": digests,
    }  # fmt: skip
    template = Path(__file__).with_suffix(".html").read_text()
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = page.from_string(template).render(content)
    with atomic_write(OUT) as folder:
        folder.mkdir()
        (folder / "index.html").write_text(text)
    print(f"report: {OUT / 'index.html'}, {len(text.encode()) / 1e6:.1f} MB")


def listed(evaluation: str) -> Iterator[tuple[str, Path]]:
    """Dataset and metrics file of every evaluation that params.yaml lists and that was run."""
    for name in load_config(dict[str, Any], evaluation, "datasets"):
        path = RESULTS / evaluation / f"{name}.json"
        if path.exists():
            yield name, path


def scores() -> Iterator[dict[str, Any]]:
    """Every classification score as a table of bars."""
    for evaluation, protocol in PROTOCOLS.items():
        for dataset, path in listed(evaluation):
            found = read(path)
            few = tables.low_shot(found)
            yield {"protocol": protocol, "dataset": dataset, "low_shot": few, **tables.classification(found)}


def answers() -> Iterator[dict[str, Any]]:
    """For every dataset that was classified, who was taken for whom, by the first of ANSWERS that it has."""
    of = {dataset: evaluation for evaluation in reversed(ANSWERS) for dataset, _ in listed(evaluation)}
    for dataset, evaluation in of.items():
        found = evaluations.answered(RESULTS / evaluation / f"predictions/{dataset}.tsv", SHARDS / dataset)
        if found is not None:
            tiles = [
                row | {"picture": None if row["picture"] is None else uri(row["picture"])} for row in found["mistakes"]
            ]
            yield found | {"protocol": PROTOCOLS[evaluation], "dataset": dataset, "mistakes": tiles}


def segmentations(colors: str) -> Iterator[dict[str, Any]]:
    """Every segmentation: its scores, and some images beside their true and their predicted masks."""
    for dataset, path in listed("segment"):
        table = tables.segmentation(read_groups(path))
        folder = RESULTS / "segment/examples" / dataset
        rows, legend = evaluations.segmented(folder, SHARDS / dataset, table["protocols"], colors=colors)
        yield {"dataset": dataset, **table, "legend": legend, "examples": [[uri(x) for x in row] for row in rows]}


def learned() -> Iterator[dict[str, Any]]:
    """The curves of every evaluation that learns."""
    for evaluation in (*PROTOCOLS, "segment"):
        for dataset, path in listed(evaluation):
            lines = list(read_groups(path)) if evaluation == "segment" else ["encoder"]
            if charts := evaluations.charts(RESULTS / evaluation / "curves" / dataset, lines):
                yield {
                    "stage": f"{PROTOCOLS.get(evaluation, 'segmentation')} on {dataset}",
                    "charts": charts,
                    "final": {},
                }


def part_scores() -> Iterator[dict[str, Any]]:
    """Every part score as a table per level."""
    for dataset, path in listed("part_scores"):
        scores = read_json(path)["part_scores"][dataset]
        yield {"dataset": dataset, "tables": tables.part_tables(scores)}


def settings(**said: dict[str, Any]) -> dict[str, list[tuple[str, Any]]]:
    """Params by stage: as the run says them of itself (`said`), and else as params.yaml does."""
    sections = {
        "shards": {"writing": load_config(dict[str, Any], "shards", "writing")},
        "teacher": said["teacher"],
        "parts": said["parts"],
        "part_maps": load_config(dict[str, Any], "part_maps"),
        "pretrain": said["pretrain"],
    }
    for evaluation in EVALUATIONS:
        if scored := [dataset for dataset, _ in listed(evaluation)]:
            section = load_config(dict[str, Any], evaluation)
            sections[evaluation] = section | {"datasets": {name: section["datasets"][name] for name in scored}}
    return {stage: list(tables.settings(section, stage)) for stage, section in sections.items()}


def histories() -> Iterator[dict[str, Any]]:
    """The curves of each training stage; one that has no history has its final metrics."""
    for name, folder in (("teacher", TEACHER), ("parts", PARTS), ("pretrain", PRETRAIN)):
        found = curves.columns(read_json(folder / "history.json"))
        charts = [
            curves.chart(points, title=title(column), percent=column in SHARES)
            for column, points in found.items()
            if len(points) == 1 or len({value for _, value in points}) > 1  # what never changes is no curve
        ]
        final = {} if charts else read_json(RESULTS / name / "metrics.json")[name]
        yield {"stage": name, "charts": charts, "final": {title(column): value for column, value in final.items()}}


def title(column: str) -> str:
    """What a column of a history is called."""
    return CURVES.get(column, column.replace("_", " "))


def gallery(
    section: ReportConfig, reader: Reader, elder: teacher.Teacher, learner: part_learner.PartMethod, tones: np.ndarray
) -> list[dict[str, Any]]:
    """For every label its share and its most typical regions among `sample` images; the background last."""
    ids = numpy_generator(section.seed, "gallery").permutation(len(reader))[: section.num_images]
    shares = heat_maps.shares(reader, ids, elder, learner)
    labels = shares.argmax(1).reshape(-1, *learner.config["grid"])
    best = overlays.typical(shares, count=TYPICAL)
    summary = read_json(RESULTS / "part_maps/metrics.json")["part_maps"]["parts"]
    colors = np.vstack([tones, GRAY]).astype(np.uint8)  # gray: the background, the label after the parts
    return [
        {
            "name": name if label == learner.background else f"part {name}",
            "color": colors[label].tolist(),
            "share": share,
            "regions": [
                uri(overlays.region(reader.image(ids[i]), labels[i] == label, size=CROP, color=colors[label]))
                for i in best[label]
            ],
        }
        for label, (name, share) in enumerate(summary.items())
    ]


def strips(
    section: ReportConfig, reader: Reader, maps: part_maps.PartMaps, masking: dict[str, Any], tones: np.ndarray
) -> dict[str, Any]:
    """The film strip of the masks and the reconstructions; a title over every column."""
    model, decoder = mae.load(PRETRAIN)
    size = {"img_size": model.encoder.patch_embed.img_size[0], "patch_size": model.patch_size}
    shown = figures.samples(reader, maps, figures.choose(len(reader), count=section.film, seed=section.seed), **size)
    film = figures.strip(shown, masking=masking, seed=section.seed, colors=tones)
    rebuilt = figures.rebuilt(
        reader, maps, figures.choose(len(reader), count=section.reconstructions, seed=section.seed), model=model,
        masking=masking, norm_pix_loss=decoder["norm_pix_loss"], seed=section.seed,
    )  # fmt: skip
    return {
        "film": [[uri(picture) for picture in row] for row in film],
        "frames": figures.captions(masking),
        "moves": figures.has_curriculum(masking),
        "rebuilt": [[uri(picture) for picture in row] for row in rebuilt],
    }


def uri(picture: np.ndarray) -> str:
    """A picture inside the page: a data URI."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "WEBP", quality=90, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


if __name__ == "__main__":
    stage.main(main)
