"""Compute how many hours pretraining takes with each recipe, from the measured steps of a machine.

    python -m benchmarks.machine --out speeds && python -m benchmarks.recipe_hours speeds [--images 1281167]

The output gives the hours on one device for each recipe whose network is in `benchmarks.step`. The hours are the images
of all epochs divided by the measured rate of the semantic step at 224 pixels. For other image sizes and other shares of
decoded patches, the rate is scaled by the FLOPs of forward and backward pass. `torch.utils.flop_counter` counts these
FLOPs on the meta device. `speeds` is a folder with files of `benchmarks.step --json`. The fastest bf16 rate of each
network is used.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.step import DECODER, IMAGE, RATIO, SHAPES, flops
from semmae.cli import recipe
from semmae.core.config import load_config
from semmae.models import mae, vit
from semmae.training.mae_loop import count_masked_and_decoded
from semmae.training.progressive_resolution import epoch_sizes
from stages.pretrain import PretrainConfig

IMAGENET = 1_281_167  # training images
ROW = "semmae semantic"


class Speed(NamedTuple):
    """The measured speed of a network: images per second, the device, the mode."""

    rate: float
    device: str
    mode: str


def step_flops(section: PretrainConfig, side: int, *, mask_ratio: float, decode_fraction: float) -> float:
    """Count the FLOPs of forward and backward pass of the recipe's MAE for one image of `side` pixels."""
    patch = section.encoder.patch_size
    num_masked, num_decoded = count_masked_and_decoded((side // patch) ** 2, mask_ratio, decode_fraction)
    with torch.device("meta"):
        model = mae.MAE(vit.build({"img_size": side, **vars(section.encoder)}), **vars(section.recipe.decoder))
        mask = torch.zeros(2, (side // patch) ** 2, dtype=torch.bool)
        images = torch.zeros(2, 3, side, side)

        def loss(images: torch.Tensor) -> torch.Tensor:
            pred = model(images, mask, num_masked, mask if num_decoded < num_masked else None, num_decoded)
            return mae.loss(pred, images, mask, patch_size=patch, norm_pix_loss=True)

        return flops(model, loss, images)


def hours(section: PretrainConfig, speed: Speed, images: int) -> float:
    """Return the hours of pretraining on one device."""
    recipe, ratio = section.recipe, section.masking.mask_ratio
    reference_flops = step_flops(section, IMAGE, mask_ratio=RATIO, decode_fraction=1.0)
    num_epochs = recipe.num_epochs(images // recipe.batch_size)
    sizes = epoch_sizes(
        recipe.resolution, img_size=section.img_size, epochs=num_epochs, patch_size=section.encoder.patch_size
    )
    epochs = sum(
        count * step_flops(section, side, mask_ratio=ratio, decode_fraction=recipe.decode_fraction) / reference_flops
        for side, count in Counter(sizes).items()
    )
    return epochs * images / speed.rate / 3600


def read_speeds(folder: Path) -> dict[str, Speed]:
    """Return the fastest bf16 speed of every network in the files of `folder`."""
    speeds: dict[str, Speed] = {}
    for file in sorted(folder.glob("*.json")):
        result = json.loads(file.read_text())
        for name, rows in result.get("steps", {}).items():
            network, precision = name.split()
            speed = Speed(rows[ROW]["images_per_second"], result["device"], result["mode"])
            if precision == "bf16":
                speeds[network] = max(speed, speeds.get(network, speed))
    if not speeds:
        raise SystemExit(f"{folder} has no bf16 results; run: python -m benchmarks.machine --out {folder}")
    return speeds


def main() -> None:
    """Print one line per recipe."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("speeds", type=Path)
    parser.add_argument("--images", type=int, default=IMAGENET)
    args = parser.parse_args()
    speeds = read_speeds(args.speeds)
    for name, file in recipe.find_recipes(Path("recipes")).items():
        section = load_config(PretrainConfig, "pretrain", file=file)
        network = next((key for key, shape in SHAPES.items() if shape == vars(section.encoder)), "of another shape")
        if network not in speeds or vars(section.recipe.decoder) != DECODER:
            print(f"{name}: the step of ViT {network} was not measured")
            continue
        speed = speeds[network]
        print(
            f"{name}: {hours(section, speed, args.images):,.0f} hours of one {speed.device} for pretraining on "
            f"{args.images:,} images, at {speed.rate:,.4g} images per second of 224 pixels ({speed.mode})"
        )


if __name__ == "__main__":
    main()
