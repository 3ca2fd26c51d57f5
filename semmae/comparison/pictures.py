"""Parts, masks and reconstructions of the same images in several runs, from the artifacts in the cache of DVC."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from semmae.core.atomic_files import read_json
from semmae.data.dataset import Reader
from semmae.models import mae
from semmae.parts import part_maps
from semmae.report import figures
from semmae.report.overlays import color_square
from semmae.report.palettes import make_palette

PRETRAIN, PART_MAPS, SHARDS = Path("data/pretrain"), Path("data/part_maps"), Path("data/shards")
SPLITS = ("val", "test", "train")  # pictures are from the first of these splits in the dataset


class RunPictures(NamedTuple):
    """The pictures of one run, a list per kind with a picture per image."""

    images: list[np.ndarray]
    parts: list[np.ndarray]
    masked: list[np.ndarray]
    reconstructions: list[np.ndarray]


def draw_runs(
    revs: Mapping[str, str], *, count: int, colors: str, seed: int
) -> tuple[dict[str, RunPictures], list[str]]:
    """Draw the pictures of one run per setting.

    Args:
        revs: The commit of the run of each setting.
        count: The number of images.
        colors: The name of a palette, for the parts.
        seed: The seed of the choice of images and of the noise of the masks.

    Returns:
        The pictures of each setting, and for each other setting a sentence that tells why it has none.
    """
    drawn: dict[str, RunPictures] = {}
    missing = []
    for setting, rev in revs.items():
        try:
            with fetched(rev) as folder:
                drawn[setting] = _draw(folder, count=count, colors=colors, seed=seed)
        except (ValueError, OSError) as error:
            missing.append(f"{setting} has no pictures: {error}")
    return drawn, missing


@contextmanager
def fetched(rev: str) -> Iterator[Path]:
    """Copy the encoder, the part maps and the list of shards of a commit into a temporary folder.

    Raises:
        ValueError: An artifact is not in the cache of DVC, or the shards have changed since.
    """
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException

    with tempfile.TemporaryDirectory() as temporary:
        try:
            files = DVCFileSystem(rev=rev)
            files.get(PRETRAIN.as_posix(), f"{temporary}/pretrain", recursive=True)
            dataset = read_json(Path(temporary) / "pretrain/encoder.json")["params"]["dataset"]
            files.get((PART_MAPS / dataset).as_posix(), f"{temporary}/part_maps", recursive=True)
            shards = files.read_text((SHARDS / dataset / "shards.json").as_posix())
        except (OSError, DvcException, KeyError) as error:
            raise ValueError(
                f"{PRETRAIN} or {PART_MAPS} of commit {rev} is not in the cache of DVC ({type(error).__name__}); "
                "dvc fetch may get it from a remote"
            ) from None
        current = SHARDS / dataset / "shards.json"
        if not current.exists() or current.read_text() != shards:
            raise ValueError(f"{SHARDS / dataset} has changed since commit {rev}")
        yield Path(temporary)


def _draw(folder: Path, *, count: int, colors: str, seed: int) -> RunPictures:
    """Draw the images of a run whose artifacts are in `folder`."""
    run: dict[str, Any] = read_json(folder / "pretrain/encoder.json")["params"]
    shards = SHARDS / run["dataset"]
    samples = read_json(shards / "shards.json")["samples"]
    reader = Reader(shards, next(name for name in SPLITS if name in samples))
    indices = figures.choose_images(len(reader), count=count, seed=seed)
    reader = reader.select(np.sort(indices))
    maps = part_maps.join(folder / "part_maps", reader, teacher=None, parts=None)
    model, decoder = mae.load(folder / "pretrain")
    rows = figures.reconstruction_rows(
        reader, maps, np.arange(len(reader)), model=model, masking=run["masking"],
        norm_pix_loss=decoder["norm_pix_loss"], seed=seed,
    )  # fmt: skip
    palette = make_palette(colors, maps.metadata["num_parts"])
    labels = maps.channels["part_map"].reshape(-1, *maps.grid)
    parts = [color_square(reader.image(i), labels[i], figures.TILE, colors=palette) for i in range(len(reader))]
    return RunPictures([row[0] for row in rows], parts, [row[1] for row in rows], [row[2] for row in rows])
