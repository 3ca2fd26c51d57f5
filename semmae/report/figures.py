"""Draw masks and reconstructions: as arrays for the report, as one image for `semmae show`.

Each picture shows the center square of an image, so that all pictures have the same size without distortion.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer, UInt8
from PIL import Image
from torch import Tensor

from semmae.core.rng import numpy_generator, torch_generator
from semmae.data.crops import crop_image, crop_part_map
from semmae.data.dataset import Reader
from semmae.models import mae, vit
from semmae.models.masking import STRATEGIES, curriculum_weight
from semmae.parts.part_maps import PartMaps
from semmae.report.overlays import center_square, hide_masked, part_tints
from semmae.report.palettes import make_palette
from semmae.report.picture_grid import arrange_grid

TILE = 288  # side of a picture in pixels
FRAME_PROGRESS = (0.0, 0.25, 0.5, 0.75, 1.0)  # fractions of the training run at which masks are shown


@dataclass(frozen=True)
class FigureSamples:
    """Images for an encoder, and the inputs of a mask strategy on the encoder's grid.

    Attributes:
        images: The center squares at the encoder's size, in [0, 255].
        pictures: The same squares at the size of the figures.
        inputs: Inputs of mask strategies by name: `part_map` and, if the part maps have it, `attention`.
        grid: Rows and columns of patches.
    """

    images: UInt8[Tensor, "b 3 s s"]
    pictures: list[UInt8[np.ndarray, "t t 3"]]
    inputs: dict[str, UInt8[Tensor, "b n"]]
    grid: tuple[int, int]


def choose_images(num_images: int, *, count: int, seed: int) -> Integer[np.ndarray, " k"]:
    """Draw the indices of `count` images, or of all images if there are fewer."""
    return numpy_generator(seed, "figures").permutation(num_images)[:count]


def load_samples(
    reader: Reader, maps: PartMaps | None, indices: Integer[np.ndarray, " k"], *, img_size: int, patch_size: int
) -> FigureSamples:
    """Load images with their part maps. Row i of `maps` belongs to image i of the reader."""
    grid = (img_size // patch_size, img_size // patch_size)
    whole = [reader.image(i) for i in indices]
    boxes = [center_square(*image.shape[:2]) for image in whole]
    inputs = {}
    if maps is not None:
        for name, values in maps.channels.items():
            grids = [values[i].reshape(maps.grid) for i in indices]
            cropped = [crop_part_map(map_, box, grid) for map_, box in zip(grids, boxes, strict=True)]
            inputs[name] = torch.from_numpy(np.stack(cropped).reshape(len(indices), -1))
    small = [crop_image(image, box, img_size) for image, box in zip(whole, boxes, strict=True)]
    return FigureSamples(
        images=torch.from_numpy(np.stack(small).transpose(0, 3, 1, 2).copy()),
        pictures=[crop_image(image, box, TILE) for image, box in zip(whole, boxes, strict=True)],
        inputs=inputs,
        grid=grid,
    )


def draw_masks(
    samples: FigureSamples, *, masking: Mapping[str, Any], progress: float, seed: int
) -> Bool[Tensor, "b n"]:
    """Draw masks as pretraining does.

    Args:
        samples: The images to mask.
        masking: The section `pretrain.masking`.
        progress: The fraction of the training run that is done, in [0, 1].
        seed: The seed of the noise.

    Raises:
        ValueError: The part maps lack an input of the strategy.
    """
    strategy = STRATEGIES[masking["strategy"]]
    if missing := set(strategy.channels) - set(samples.inputs):
        raise ValueError(
            f"the part maps lack {' and '.join(sorted(missing))}, which the mask strategy {masking['strategy']} needs; "
            "see part_maps.attention in params.yaml and run: dvc repro part_maps"
        )
    weight = torch.tensor(curriculum_weight(progress, **masking["curriculum"]))
    noise = strategy.draw(len(samples.images), samples.grid, generator=torch_generator(seed, "figures"))
    return strategy(noise, masking["mask_ratio"], grid=samples.grid, curriculum_weight=weight, **samples.inputs)


def draw_mask_frames(samples: FigureSamples, *, masking: Mapping[str, Any], seed: int) -> list[Bool[Tensor, "b n"]]:
    """Draw masks at each progress in FRAME_PROGRESS.

    With a curriculum, all frames share their noise, so that frames differ only by the curriculum. Without a curriculum,
    each frame has its own noise.
    """
    same_noise = has_curriculum(masking)
    return [
        draw_masks(samples, masking=masking, progress=progress, seed=seed if same_noise else seed + number)
        for number, progress in enumerate(FRAME_PROGRESS)
    ]


def has_curriculum(masking: Mapping[str, Any]) -> bool:
    """Return whether masks depend on the progress of training."""
    return "curriculum_weight" in STRATEGIES[masking["strategy"]].inputs


def frame_captions(masking: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the title of each frame with its curriculum weight; the weight is "" without a curriculum."""
    if not has_curriculum(masking):
        return [(f"draw {number}", "") for number, _ in enumerate(FRAME_PROGRESS, 1)]
    return [(f"{frame:.0%}", f"{curriculum_weight(frame, **masking['curriculum']):.2f}") for frame in FRAME_PROGRESS]


def masks_note(masking: Mapping[str, Any], *, tinted: bool = True) -> str:
    """Explain the pictures of `mask_rows`.

    Args:
        masking: The section `pretrain.masking`.
        tinted: Whether the masked patches have the colors of the parts.
    """
    if not has_curriculum(masking):
        return (
            "Five random masks per image. This strategy has no curriculum: the distribution of masks is the same at "
            "every step. Masked patches are gray."
        )
    tints = "have the color of their part; those of the background are gray" if tinted else "are gray"
    return (
        "Masks at five steps of training, drawn from the same noise; the percentages are shares of the training. At "
        "curriculum weight 0, masks cover a fraction of each part; at 1, they cover whole parts. Masked patches "
        f"{tints}."
    )


def reconstructions_note(*, norm_pix_loss: bool) -> str:
    """Explain the pictures of `reconstruction_rows`: what the decoder predicts, and what is copied from the image."""
    source = (
        "The decoder predicts normalized patches (norm-pix loss). The mean and the standard deviation of each of them "
        "are also copied from the image, so the colors are not a prediction."
        if norm_pix_loss
        else "The decoder predicts pixel values."
    )
    return (
        "The masks are drawn as at the end of training. In the reconstruction, visible patches are copied from the "
        f"image, and masked ones are predicted. {source}"
    )


def reconstruct_images(
    model: mae.MAE, images: UInt8[Tensor, "b 3 s s"], mask: Bool[Tensor, "b n"], *, norm_pix_loss: bool
) -> UInt8[np.ndarray, "b s s 3"]:
    """Replace the masked patches of images by the predictions of the MAE."""
    normalized = vit.normalize(images)
    with torch.no_grad():
        pred = model(normalized, mask, int(mask[0].sum()))
    return _to_pixels(mae.reconstruct(pred, normalized, mask, patch_size=model.patch_size, norm_pix_loss=norm_pix_loss))


def masks_grid(
    reader: Reader,
    maps: PartMaps | None,
    *,
    masking: Mapping[str, Any],
    img_size: int,
    patch_size: int,
    count: int,
    seed: int,
    colors: str,
) -> Image.Image:
    """Draw a row per image: the image, then its mask at each progress in FRAME_PROGRESS."""
    indices = choose_images(len(reader), count=count, seed=seed)
    samples = load_samples(reader, maps, indices, img_size=img_size, patch_size=patch_size)
    part_colors = None if maps is None else make_palette(colors, maps.metadata["num_parts"])
    titles = ["image", *(title for title, _ in frame_captions(masking))]
    rows = mask_rows(samples, masking=masking, seed=seed, colors=part_colors)
    return arrange_grid(rows, titles, notes=[masks_note(masking, tinted=part_colors is not None)])


def mask_rows(
    samples: FigureSamples, *, masking: Mapping[str, Any], seed: int, colors: UInt8[np.ndarray, "p 3"] | None
) -> list[list[np.ndarray]]:
    """Return a row per sample: the picture, then its mask at each progress in FRAME_PROGRESS.

    With a curriculum and `colors`, masked patches are tinted in the color of their part.
    """
    frames = draw_mask_frames(samples, masking=masking, seed=seed)
    tints = [None] * len(samples.pictures)
    if colors is not None and has_curriculum(masking):
        tints = list(part_tints(samples.inputs["part_map"].numpy(), grid=samples.grid, colors=colors))
    return [
        [picture, *(hide_masked(picture, mask[i].view(samples.grid).numpy(), tint=tints[i]) for mask in frames)]
        for i, picture in enumerate(samples.pictures)
    ]


def reconstructions_grid(
    reader: Reader,
    maps: PartMaps | None,
    *,
    model: mae.MAE,
    masking: Mapping[str, Any],
    norm_pix_loss: bool,
    count: int,
    seed: int,
) -> Image.Image:
    """Draw a row per image: the image, its mask as at the end of training, and its reconstruction."""
    indices = choose_images(len(reader), count=count, seed=seed)
    rows = reconstruction_rows(
        reader, maps, indices, model=model, masking=masking, norm_pix_loss=norm_pix_loss, seed=seed
    )
    notes = [reconstructions_note(norm_pix_loss=norm_pix_loss)]
    return arrange_grid(rows, ["image", "masked", "reconstruction"], notes=notes)


def reconstruction_rows(
    reader: Reader,
    maps: PartMaps | None,
    indices: Integer[np.ndarray, " k"],
    *,
    model: mae.MAE,
    masking: Mapping[str, Any],
    norm_pix_loss: bool,
    seed: int,
) -> list[list[np.ndarray]]:
    """Return a row per image: the picture, its mask as at the end of training, and its reconstruction."""
    img_size = model.encoder.patch_embed.img_size[0]
    samples = load_samples(reader, maps, indices, img_size=img_size, patch_size=model.patch_size)
    mask = draw_masks(samples, masking=masking, progress=1.0, seed=seed)
    reconstructed = reconstruct_images(model, samples.images, mask, norm_pix_loss=norm_pix_loss)
    return [
        [picture, hide_masked(picture, mask[i].view(samples.grid).numpy()), _enlarge(reconstructed[i])]
        for i, picture in enumerate(samples.pictures)
    ]


def _to_pixels(normalized: Float[Tensor, "b 3 s s"]) -> UInt8[np.ndarray, "b s s 3"]:
    """Invert `vit.normalize`; values are clipped to [0, 255]."""
    scaled = normalized * torch.tensor(vit.STD).view(3, 1, 1) + torch.tensor(vit.MEAN).view(3, 1, 1)
    return (scaled * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _enlarge(picture: UInt8[np.ndarray, "s s 3"]) -> UInt8[np.ndarray, "t t 3"]:
    return np.array(Image.fromarray(picture).resize((TILE, TILE), Image.Resampling.BICUBIC))
