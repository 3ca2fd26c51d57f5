"""`semmae show`: draw parts, masks or reconstructions of a few images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from PIL import Image

    from semmae.data.dataset import Reader

SHARDS, PART_MAPS = Path("data/shards"), Path("data/part_maps")
TEACHER, PARTS, PRETRAIN = Path("data/teacher"), Path("data/parts"), Path("data/pretrain")


def show(
    what: Annotated[
        Literal["parts", "regions", "views", "heat", "masks", "reconstructions"], typer.Argument(help="What to draw.")
    ],
    dataset: Annotated[str, typer.Option(help="A dataset under data/shards.")],
    out: Annotated[Path, typer.Option(help="The image file to write, e.g. grid.png.")],
    split: Annotated[str, typer.Option(help="The split to take images from.")] = "val",
    count: Annotated[int, typer.Option(min=1, help="The number of images.")] = 8,
    seed: Annotated[int, typer.Option(help="The seed that selects images and draws masks.")] = 0,
    colors: Annotated[str, typer.Option(help="The palette of the parts: okabe_ito or tol_bright.")] = "okabe_ito",
    search: Annotated[int, typer.Option(min=1, help="The number of images to search for typical regions.")] = 256,
) -> None:
    """Draw a grid of images.

    parts: images beside their parts, plain k-means and true masks. regions: the typical regions of each part.
    views: the parts of shifted, flipped and zoomed images. heat: a heat map per part. masks: masks during training.
    reconstructions: masked images and their reconstructions.
    """
    from semmae.core.atomic_files import read_json
    from semmae.core.config import load_config, read_yaml
    from semmae.data.dataset import Reader
    from semmae.models import mae
    from semmae.parts import part_maps
    from semmae.report import figures
    from semmae.report.palettes import make_palette
    from stages.pretrain import PretrainConfig

    make_palette(colors, 1)  # refuses an unknown palette before the long work
    reader = Reader(SHARDS / dataset, split)
    folder = PART_MAPS / dataset
    needs_maps = what in ("masks", "reconstructions") and folder.exists()
    maps = part_maps.join(folder, reader, teacher=None, parts=None) if needs_maps else None
    selection = {"count": count, "seed": seed}
    if what in ("parts", "regions", "views", "heat"):
        image = draw_parts(what, reader, colors=colors, search=search, **selection)
    elif what == "masks":
        section = load_config(PretrainConfig, "pretrain")
        size = {"img_size": section.img_size, "patch_size": section.encoder.patch_size}
        masking = read_yaml()["pretrain"]["masking"]
        image = figures.masks_grid(reader, maps, masking=masking, **size, colors=colors, **selection)
    else:
        model, decoder = mae.load(PRETRAIN)
        masking = read_json(PRETRAIN / "encoder.json")["params"]["masking"]
        norm_pix_loss = decoder["norm_pix_loss"]
        image = figures.reconstructions_grid(
            reader, maps, model=model, masking=masking, norm_pix_loss=norm_pix_loss, **selection
        )
    image.save(out)
    typer.echo(f"{out}: {what} of {dataset}, {image.width} x {image.height} pixels")


def draw_parts(what: str, reader: "Reader", *, count: int, search: int, seed: int, colors: str) -> "Image.Image":
    """Draw parts, regions, views or heat maps, with the teacher and the part method of the project."""
    from semmae.models.teacher import load_teacher
    from semmae.parts.part_methods import load_parts
    from semmae.report import heat_maps, part_pictures, part_views
    from semmae.report.part_labels import label_images

    teacher = load_teacher(TEACHER)
    method = load_parts(PARTS, teacher=teacher.digest)
    if what == "heat":
        return heat_maps.heat_grid(reader, teacher, method, count=count, seed=seed, colors=colors)
    num_images = count if what == "views" else max(count, search)
    labeled = label_images(reader, teacher, method, count=num_images, seed=seed)
    if what == "regions":
        return part_pictures.regions_grid(labeled, colors=colors)
    if what == "views":
        return part_views.views_grid(labeled, teacher, count=count, colors=colors)
    if sentence := labeled.describe_place():
        typer.echo(sentence)
    return part_pictures.parts_grid(labeled, count=count, colors=colors)
