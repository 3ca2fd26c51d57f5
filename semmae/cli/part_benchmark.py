"""`semmae part-benchmark`: score parts on a public benchmark, as published methods are scored."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from semmae.evaluation.part_benchmarks.benchmark import PartBenchmark
    from semmae.evaluation.part_benchmarks.scoring import PartLabeling
    from semmae.sharding.image_files import ImageFiles
    from stages.parts import PartsConfig

TEACHER, RESULTS = Path("data/teacher"), Path("results/part_benchmarks")
BATCH_SIZE = 64


def part_benchmark(
    benchmark: Annotated[Literal["cub", "part_imagenet", "celeba"], typer.Argument(help="The benchmark.")],
    path: Annotated[Path, typer.Argument(help="The folder of the data set, as its authors publish it.")],
    num_parts: Annotated[int, typer.Option(min=1, max=254, help="Number of parts, without the background.")],
    split: Annotated[Literal["ood", "seg"], typer.Option(help="The release of PartImageNet.")] = "ood",
) -> None:
    """Fit parts on the training images of a benchmark, and score them on its test images."""
    from dataclasses import replace

    from semmae.core.atomic_files import write_json
    from semmae.core.config import load_config
    from semmae.evaluation.part_benchmarks.benchmark import KeypointBenchmark
    from semmae.evaluation.part_benchmarks.scoring import score_keypoints, score_polygons
    from stages.parts import PartsConfig

    section = replace(load_config(PartsConfig, "parts"), num_parts=num_parts)
    data = _read(benchmark, path, split)
    out = RESULTS / f"{data.name}_{num_parts}.json"
    typer.echo(
        f"{data.name}: {len(data.train)} images to fit parts on, {len(data.test.images)} images to score; {out} is "
        "written at the end, and a run that is stopped starts again from the beginning",
        err=True,
    )
    labeling, teacher = _fit(section, data.train)
    is_keypoints = isinstance(data, KeypointBenchmark)
    scores = score_keypoints(data, labeling) if is_keypoints else score_polygons(data, labeling)
    settings = {
        "method": section.method, "num_parts": num_parts, "img_size": section.img_size, "teacher": teacher,
        "train_images": len(data.train), "test_images": len(data.test.images),
    }  # fmt: skip
    write_json(out, {"part_benchmarks": {out.stem: scores | settings}})
    typer.echo(f"{out}: " + ", ".join(f"{name} {value:.3f}" for name, value in scores.items()))


def _read(benchmark: str, path: Path, split: Literal["ood", "seg"]) -> "PartBenchmark":
    from semmae.evaluation.part_benchmarks.celeba import read_celeba
    from semmae.evaluation.part_benchmarks.cub import read_cub
    from semmae.evaluation.part_benchmarks.part_imagenet import read_part_imagenet

    if benchmark == "part_imagenet":
        return read_part_imagenet(path, split)
    return read_cub(path) if benchmark == "cub" else read_celeba(path)


def _fit(section: "PartsConfig", images: "ImageFiles") -> tuple["PartLabeling", str]:
    """Fit the part method of `parts.method`, and return how to label images with it, and the digest of the teacher."""
    from dataclasses import asdict

    import torch

    from semmae.core import distributed
    from semmae.core.async_copy import to_device
    from semmae.core.rng import fold, numpy_generator
    from semmae.data.loader import batches
    from semmae.data.transforms import FullImage
    from semmae.evaluation.part_benchmarks.scoring import PartLabeling
    from semmae.models import vit
    from semmae.models.teacher import load_teacher
    from semmae.parts.part_method import KMeansParts

    teacher, device = load_teacher(TEACHER), distributed.choose_device(section.compute.device)
    grid = teacher.grid(section.img_size)
    vit.use_fastest_attention(teacher, device, frozen_grid=grid)
    teacher = teacher.to(device)
    indices = numpy_generator(section.seed, "sample").permutation(len(images))[: section.num_images]
    view, patches = FullImage(section.img_size, section.seed, flip=0.0), []
    for batch in batches(images, indices, view, batch_size=BATCH_SIZE, workers=section.compute.workers):
        patches.append(teacher.encode(to_device(device, batch["image"])).patch.cpu())
    config = {
        "method": "kmeans", "num_parts": section.num_parts, "img_size": section.img_size, "grid": grid,
        "embed_dim": teacher.embed_dim, "background": False,
    } | asdict(section.kmeans)  # fmt: skip
    method = KMeansParts(config)
    method.fit(torch.cat(patches), seed=fold(section.seed, "kmeans"))
    method = method.to(device).eval()

    def assign(batch: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), distributed.autocast(device, section.compute.precision):
            return method.assign(teacher.encode(to_device(device, batch)))

    labeling = PartLabeling(
        assign, section.img_size, grid, num_parts=method.num_parts, num_labels=method.num_labels,
        batch_size=BATCH_SIZE, workers=section.compute.workers,
    )  # fmt: skip
    return labeling, teacher.digest
