"""`semmae part-benchmark`: score parts on a public benchmark, as published methods are scored."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from semmae.evaluation.part_benchmarks.benchmark import PartBenchmark
    from stages.parts import PartsConfig

TEACHER, RESULTS = Path("data/teacher"), Path("results/part_benchmarks")
BATCH_SIZE = 64


def part_benchmark(
    benchmark: Annotated[Literal["cub", "part_imagenet", "celeba"], typer.Argument(help="The benchmark.")],
    path: Annotated[Path, typer.Argument(help="The folder of the data set, as its authors publish it.")],
    num_parts: Annotated[int, typer.Option(min=1, max=254, help="Number of parts, without the background.")],
    split: Annotated[Literal["ood", "seg"], typer.Option(help="The release of PartImageNet.")] = "ood",
) -> None:
    """Fit parts on the training images of a benchmark, and score them on its test images.

    The teacher is that in data/teacher, and the part method that of the section parts in params.yaml.
    """
    from dataclasses import replace

    from semmae.core.config import load_config
    from stages.parts import PartsConfig

    section = replace(load_config(PartsConfig, "parts"), num_parts=num_parts)
    if section.method == "truth":
        raise ValueError(
            "parts.method is truth, which a benchmark cannot use; expected learned, paper, kmeans, attention or "
            "grid. Change parts.method in params.yaml"
        )
    data = _read(benchmark, path, split)
    out = RESULTS / f"{data.name}_{num_parts}.json"
    typer.echo(
        f"{data.name}: {len(data.train)} images to fit parts on, {len(data.test.images)} images to score. A run that "
        "is stopped resumes from the last checkpoint of the part method, if there is one, and repeats the rest",
        err=True,
    )
    scores = _fit_and_score(section, data, out)
    typer.echo(f"{out}: " + ", ".join(f"{name} {value:.3f}" for name, value in scores.items()))


def _read(benchmark: str, path: Path, split: Literal["ood", "seg"]) -> "PartBenchmark":
    from semmae.evaluation.part_benchmarks.celeba import read_celeba
    from semmae.evaluation.part_benchmarks.cub import read_cub
    from semmae.evaluation.part_benchmarks.part_imagenet import read_part_imagenet

    if benchmark == "part_imagenet":
        return read_part_imagenet(path, split)
    return read_cub(path) if benchmark == "cub" else read_celeba(path)


def _fit_and_score(section: "PartsConfig", data: "PartBenchmark", out: Path) -> dict[str, float]:
    """Fit the part method on the training images, score it on the test images, and write the scores to `out`."""
    import torch

    from semmae.core import distributed
    from semmae.core.async_copy import to_device
    from semmae.core.atomic_files import write_json
    from semmae.core.digests import json_digest
    from semmae.evaluation.part_benchmarks.scoring import PartLabeling, score
    from semmae.models.teacher import load_teacher
    from semmae.runs.run import Run
    from stages.parts import fit_parts, method_config

    teacher, compute = load_teacher(TEACHER), section.compute
    inputs = [json_digest([str(data.train.root.resolve()), data.train.keys]), teacher.digest]
    with (
        distributed.world(compute.device) as world,
        Run("part-benchmark", world, out=out, params=section, inputs=inputs,
            checkpoint_minutes=section.checkpoint_minutes) as run,
    ):  # fmt: skip
        method, _, _ = fit_parts(section, method_config(section, teacher), data.train, teacher, run)
        method.to(world.device).eval()

        def assign(images: torch.Tensor) -> torch.Tensor:
            run.exit_if_stopped("while it labeled images")
            with torch.no_grad(), distributed.autocast(world.device, compute.precision):
                return method.assign(teacher.encode(to_device(world.device, images)))

        scores = score(data, PartLabeling(assign, method, batch_size=BATCH_SIZE, workers=compute.workers))
        settings = {
            "method": section.method, "num_parts": method.num_parts, "img_size": section.img_size,
            "teacher": teacher.digest, "train_images": len(data.train), "test_images": len(data.test.images),
        }  # fmt: skip
        write_json(out, {"part_benchmarks": {out.stem: scores | settings}})
    return scores
