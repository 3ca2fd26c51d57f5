"""report: write one HTML page that shows a run. The page loads no other file.

    python -m stages.report

Reads  data/pretrain, data/parts, data/teacher with their histories and parameters; data/part_maps/<pretrain.dataset>;
       data/shards; results/{teacher,parts}/metrics.json; the results of knn, linear, attentive, finetune,
       segment and part_scores on the datasets that params.yaml lists
Calls  run_sections, part_sections, evaluation_sections, figures; stages/report.html is the template of the page
Writes results/report/index.html
"""

from pathlib import Path
from typing import Any

import jinja2
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass

from semmae.core import stage
from semmae.core.atomic_files import atomic_write, read_json
from semmae.core.config import STRICT, load_config
from semmae.core.model_files import model_digest
from semmae.data.dataset import Reader
from semmae.models import mae
from semmae.models.teacher import load_teacher
from semmae.parts import part_maps, part_methods
from semmae.report import evaluation_sections, figures, part_sections, run_sections
from semmae.report.data_uri import data_uri
from semmae.report.palettes import make_palette

OUT, SHARDS, PART_MAPS = Path("results/report"), Path("data/shards"), Path("data/part_maps")
TEACHER, PARTS, PRETRAIN = Path("data/teacher"), Path("data/parts"), Path("data/pretrain")


@dataclass(frozen=True, config=STRICT)
class ReportConfig:
    """The section `report` of params.yaml."""

    colors: str
    overlays: PositiveInt
    views: PositiveInt
    masks: PositiveInt
    reconstructions: PositiveInt
    num_images: PositiveInt
    seed: int


def main() -> None:
    """Write the page."""
    section = load_config(ReportConfig, "report")
    content = gather_run(section)
    content |= {
        "verdict": evaluation_sections.verdict_section(
            {"the teacher": content["teacher"]["steps"], "pretraining": content["num_steps"]}
        ),
        "scores": list(evaluation_sections.classification_section()),
        "segmentations": list(evaluation_sections.segmentation_section(section.colors)),
        "part_scores": list(evaluation_sections.part_scores_section()),
        "mistakes": list(evaluation_sections.mistakes_section()),
        "curves": [*run_sections.training_curves(), *evaluation_sections.evaluation_curves()],
    }
    page = render(content)
    with atomic_write(OUT) as folder:
        folder.mkdir()
        (folder / "index.html").write_text(page)
    print(f"report: {OUT / 'index.html'}, {len(page.encode()) / 1e6:.1f} MB")


def gather_run(section: ReportConfig) -> dict[str, Any]:
    """Gather parameters and pictures of the run.

    Raises:
        ValueError: The encoder was imported, so it has no run.
    """
    encoder = read_json(PRETRAIN / "encoder.json")
    if "params" not in encoder:
        raise ValueError(
            f"{PRETRAIN} holds an imported encoder; expected one that the pretrain stage trained. "
            "Run dvc repro pretrain, or read the scores in results/"
        )
    run = encoder["params"]
    teacher = load_teacher(TEACHER)
    method = part_methods.load_parts(PARTS, teacher=teacher.digest)
    shards = read_json(SHARDS / run["dataset"] / "shards.json")
    reader = Reader(SHARDS / run["dataset"], part_sections.shown_split(run["dataset"]))
    maps = part_maps.join(PART_MAPS / run["dataset"], reader, teacher=teacher.digest, parts=method.digest)
    colors = make_palette(section.colors, method.num_parts)
    model, decoder = mae.load(PRETRAIN)
    options: dict[str, Any] = {
        "colors": section.colors, "overlays": section.overlays, "views": section.views,
        "num_images": section.num_images, "seed": section.seed,
    }  # fmt: skip

    return {
        "run": run,
        "num_steps": encoder["steps"],
        "teacher": teacher.config,
        "parts": method.config,
        "shards": shards,
        "part_sections": [
            part_sections.parts_section(dataset, teacher, method, **options)
            for dataset in part_sections.shown_datasets(run["dataset"])
        ],
        "masks": run_sections.masks_section(
            reader, maps, model, run["masking"], colors, count=section.masks, seed=section.seed
        ),
        "reconstructions": figures.reconstruction_rows(
            reader,
            maps,
            figures.choose_images(len(reader), count=section.reconstructions, seed=section.seed),
            model=model,
            masking=run["masking"],
            norm_pix_loss=decoder["norm_pix_loss"],
            seed=section.seed,
        ),
        "reconstructions_note": figures.reconstructions_note(norm_pix_loss=decoder["norm_pix_loss"]),
        "params": run_sections.params_section(
            teacher=teacher.config["params"], parts=method.config["params"], pretrain=run
        ),
        "digests": {
            "teacher": teacher.digest,
            "parts": method.digest,
            "encoder": model_digest(PRETRAIN, "encoder"),
        },
    }


def render(content: dict[str, Any]) -> str:
    """Render the template. Its filter `uri` embeds a picture."""
    template = Path(__file__).with_suffix(".html").read_text()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["uri"] = data_uri
    return environment.from_string(template).render(content)


if __name__ == "__main__":
    stage.main(main)
