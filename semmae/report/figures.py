"""Pictures of parts, masks and reconstructions, as arrays of pixels; what calls them knows where the arrays come from.

- `choose`, `samples`: some images of a reader as an encoder sees them, with the part maps' evidence on its grid.
- `pair`: an image and its parts.
- `masks`, `film`, `strip`: masks as training draws them, at one moment of the curriculum and at five, and as pictures.
- `reconstructions`, `rebuilt`: what an autoencoder makes of the masked images, in pixels, and beside them.
- `parts_grid`, `masks_grid`, `reconstructions_grid`: the above as one image each, for the command line; `sheet`: any.

Everything is shown as the central square of an image: tiles of one size, nothing distorted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from semmae.core.rng import numpy_generator, torch_generator
from semmae.data.crops import Box, crop_image, crop_part_map
from semmae.data.dataset import Reader
from semmae.models import mae, vit
from semmae.models.masking import STRATEGIES, curriculum_weight
from semmae.parts.part_maps import PartMaps
from semmae.report.overlays import masked, overlay, tints
from semmae.report.palettes import palette

TILE = 288  # pixels on a side of a picture
FRAMES = (0.0, 0.25, 0.5, 0.75, 1.0)  # moments of the run in a film strip


@dataclass(frozen=True)
class FigureSamples:
    """Images as an encoder of some size sees them, and on its grid what a mask strategy may look at."""

    images: UInt8[Tensor, "b 3 s s"]
    pictures: list[UInt8[np.ndarray, "t t 3"]]  # the same squares as they are shown
    evidence: dict[str, UInt8[Tensor, "b n"]]  # part_map and, where it is kept, attention
    grid: tuple[int, int]


def choose(num_samples: int, *, count: int, seed: int) -> Integer[np.ndarray, " k"]:
    """Which of the samples to show: `count` of them, or all."""
    return numpy_generator(seed, "figures").permutation(num_samples)[:count]


def samples(
    reader: Reader, maps: PartMaps | None, ids: Integer[np.ndarray, " k"], *, img_size: int, patch_size: int
) -> FigureSamples:
    """The samples at `ids`; rows of `maps` belong to the reader's samples."""
    grid = (img_size // patch_size, img_size // patch_size)
    whole = [reader.image(i) for i in ids]
    boxes = [central(*image.shape[:2]) for image in whole]
    evidence = {}
    if maps is not None:
        for name, values in maps.channels.items():
            rows = [crop_part_map(values[i].reshape(maps.grid), box, grid) for i, box in zip(ids, boxes, strict=True)]
            evidence[name] = torch.from_numpy(np.stack(rows).reshape(len(ids), -1))
    small = [crop_image(image, box, img_size) for image, box in zip(whole, boxes, strict=True)]
    return FigureSamples(
        torch.from_numpy(np.stack(small).transpose(0, 3, 1, 2).copy()),
        [crop_image(image, box, TILE) for image, box in zip(whole, boxes, strict=True)],
        evidence,
        grid,
    )


def central(height: int, width: int) -> Box:
    """The largest square in the middle of an image of that many pixels."""
    side = min(height, width)
    down, right = side / height, side / width
    return Box((1 - down) / 2, (1 - right) / 2, down, right, flip=False)


def masks(samples: FigureSamples, *, masking: Mapping[str, Any], progress: float, seed: int) -> Bool[Tensor, "b n"]:
    """The masks that pretraining with those params (`pretrain.masking`) draws when `progress` of it is done."""
    strategy = STRATEGIES[masking["strategy"]]
    if missing := {"part_map", "attention"}.intersection(strategy.inputs) - set(samples.evidence):
        raise ValueError(
            f"masks of the strategy {masking['strategy']} need {' and '.join(missing)}, which the part maps do not "
            "hold; see part_maps.attention in params.yaml and run dvc repro part_maps"
        )
    hardness = torch.tensor(curriculum_weight(progress, **masking["curriculum"]))
    noise = strategy.draw(len(samples.images), samples.grid, generator=torch_generator(seed, "figures"))
    return strategy(noise, masking["mask_ratio"], grid=samples.grid, curriculum_weight=hardness, **samples.evidence)


def film(samples: FigureSamples, *, masking: Mapping[str, Any], seed: int) -> list[Bool[Tensor, "b n"]]:
    """Masks at FRAMES. With a curriculum the noise stands still, so that it alone moves; without one, five draws."""
    moves = has_curriculum(masking)
    return [
        masks(samples, masking=masking, progress=progress, seed=seed if moves else seed + number)
        for number, progress in enumerate(FRAMES)
    ]


def has_curriculum(masking: Mapping[str, Any]) -> bool:
    """Whether masks depend on when they are drawn."""
    return "curriculum_weight" in STRATEGIES[masking["strategy"]].inputs


def captions(masking: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What to write over and under each frame of a film strip: the moment, and the weight of whole parts there."""
    if not has_curriculum(masking):
        return [(f"draw {number}", "") for number, _ in enumerate(FRAMES, 1)]
    return [(f"{frame:.0%}", f"{curriculum_weight(frame, **masking['curriculum']):.2f}") for frame in FRAMES]


def reconstructions(
    model: mae.MAE, images: UInt8[Tensor, "b 3 s s"], mask: Bool[Tensor, "b n"], *, norm_pix_loss: bool
) -> UInt8[np.ndarray, "b s s 3"]:
    """Masked patches as predicted, the others as they are."""
    units = vit.normalize(images)
    with torch.no_grad():
        pred = model(units, mask, int(mask[0].sum()))
    return _pixels(mae.reconstruct(pred, units, mask, patch_size=model.patch_size, norm_pix_loss=norm_pix_loss))


def parts_grid(reader: Reader, maps: PartMaps, *, count: int, seed: int, colors: str) -> Image.Image:
    """Images beside their parts, two pairs to a row, over a legend."""
    tones = palette(colors, maps.metadata["num_parts"])
    ids = choose(len(reader), count=count, seed=seed)
    tiles = [tile for i in ids for tile in pair(reader, maps, i, colors=tones)]
    return sheet(
        [tiles[i : i + 4] for i in range(0, len(tiles), 4)], ["image", "parts"] * min(2, len(ids)), legend=tones
    )


def pair(
    reader: Reader, maps: PartMaps, index: SupportsIndex, *, colors: UInt8[np.ndarray, "p 3"]
) -> tuple[UInt8[np.ndarray, "t t 3"], UInt8[np.ndarray, "t t 3"]]:
    """An image and its overlay."""
    image = reader.image(index)
    box = central(*image.shape[:2])
    picture = crop_image(image, box, TILE)
    labels = crop_part_map(maps.channels["part_map"][index].reshape(maps.grid), box, (TILE, TILE))
    return picture, overlay(picture, labels, colors=colors)


def masks_grid(
    reader: Reader, maps: PartMaps | None, *, masking: Mapping[str, Any], img_size: int, patch_size: int, count: int,
    seed: int, colors: str,
) -> Image.Image:  # fmt: skip
    """The film strip of the curriculum: an image to a row, masked as at 0, 25, 50, 75 and 100 % of the run."""
    shown = samples(reader, maps, choose(len(reader), count=count, seed=seed), img_size=img_size, patch_size=patch_size)
    tones = None if maps is None else palette(colors, maps.metadata["num_parts"])
    titles = ["image", *(title for title, _ in captions(masking))]
    return sheet(strip(shown, masking=masking, seed=seed, colors=tones), titles)


def strip(
    samples: FigureSamples, *, masking: Mapping[str, Any], seed: int, colors: UInt8[np.ndarray, "p 3"] | None
) -> list[list[np.ndarray]]:
    """Per sample its picture and its frames; masked patches keep a breath of their part where parts guide the masks."""
    frames = film(samples, masking=masking, seed=seed)
    tint = [None] * len(samples.pictures)
    if colors is not None and has_curriculum(masking):
        tint = list(tints(samples.evidence["part_map"].numpy(), grid=samples.grid, colors=colors))
    return [
        [picture, *(masked(picture, mask[i].view(samples.grid).numpy(), tint=tint[i]) for mask in frames)]
        for i, picture in enumerate(samples.pictures)
    ]


def reconstructions_grid(
    reader: Reader, maps: PartMaps | None, *, model: mae.MAE, masking: Mapping[str, Any], norm_pix_loss: bool,
    count: int, seed: int,
) -> Image.Image:  # fmt: skip
    """An image to a row: as it is, masked as at the end of the run, and rebuilt."""
    rows = rebuilt(
        reader, maps, choose(len(reader), count=count, seed=seed), model=model, masking=masking,
        norm_pix_loss=norm_pix_loss, seed=seed,
    )  # fmt: skip
    return sheet(rows, ["image", "masked", "reconstruction"])


def rebuilt(
    reader: Reader, maps: PartMaps | None, ids: Integer[np.ndarray, " k"], *, model: mae.MAE,
    masking: Mapping[str, Any], norm_pix_loss: bool, seed: int,
) -> list[list[np.ndarray]]:  # fmt: skip
    """Per sample its picture, masked as at the end of the run, and the reconstruction."""
    img_size = model.encoder.patch_embed.img_size[0]
    shown = samples(reader, maps, ids, img_size=img_size, patch_size=model.patch_size)
    mask = masks(shown, masking=masking, progress=1.0, seed=seed)
    whole = reconstructions(model, shown.images, mask, norm_pix_loss=norm_pix_loss)
    return [
        [picture, masked(picture, mask[i].view(shown.grid).numpy()), _enlarged(whole[i])]
        for i, picture in enumerate(shown.pictures)
    ]


def _pixels(units: Float[Tensor, "b 3 s s"]) -> UInt8[np.ndarray, "b s s 3"]:
    """The inverse of `vit.normalize`, clipped."""
    share = units * torch.tensor(vit.STD).view(3, 1, 1) + torch.tensor(vit.MEAN).view(3, 1, 1)
    return (share * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _enlarged(picture: UInt8[np.ndarray, "s s 3"]) -> UInt8[np.ndarray, "t t 3"]:
    return np.array(Image.fromarray(picture).resize((TILE, TILE), Image.Resampling.BICUBIC))


def sheet(
    rows: list[list[np.ndarray]], titles: list[str], *, legend: UInt8[np.ndarray, "p 3"] | None = None
) -> Image.Image:
    """Rows of pictures on white under their titles, over the colors of the parts."""
    gap, head = 12, 36
    foot = head if legend is not None else 0
    size = (gap + len(titles) * (TILE + gap), head + len(rows) * (TILE + gap) + foot)
    sheet, font = Image.new("RGB", size, "white"), ImageFont.load_default(18)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((gap + column * (TILE + gap), 8), title, fill="#333333", font=font)
    for r, row in enumerate(rows):
        for column, picture in enumerate(row):
            tile = Image.fromarray(picture)
            place = (gap + column * (TILE + gap), head + r * (TILE + gap))
            sheet.paste(tile, place, tile if tile.mode == "RGBA" else None)
    for part, color in enumerate(() if legend is None else legend.tolist()):
        x, y = gap + part * 64, size[1] - head
        draw.rounded_rectangle((x, y + 4, x + 22, y + 26), radius=4, fill=tuple(color))
        draw.text((x + 30, y + 4), str(part), fill="#333333", font=font)
    return sheet
