"""Compare the input pipeline of this project with common input pipelines for MAE, in images per second.

    python -m benchmarks.loader [--sizes 160 256 500x375] [--images 128] [--batch 64] [--workers 0] [--json out.json]

The images are JPEGs of drawn animals (quality 90, 4:2:0). Each pipeline applies RandomResizedCrop to 224 pixels and a
flip. The rows of the table:

- `semmae`: reads samples of shards by offset and returns uint8 crops, which the device normalizes.
- `semmae + part maps`: also crops a 14 x 14 map. The time of this crop is smaller than the noise between two rows. A
  row of its own therefore gives it, in CPU time of the process that requests batches.
- `semmae + normalized`: also converts to float, as the other pipelines do.
- `torchvision PIL`: ImageFolder, PIL and the v1 transforms of torchvision. MAE uses this pipeline.
- `torchvision v2`: the JPEG decoder of torchvision and its v2 transforms on tensors.
- `webdataset`: the standard pipeline of webdataset on our shards, decode("pil") and the v1 transforms.
- `litdata`, if it is installed (`pip install litdata`): chunks of the same JPEGs, decoded by torchvision, then the v2
  transforms.

Each round times every row once. The table gives the median of images per second, and the median ratio to
`torchvision PIL` within a round. With `--workers 0` the time is the CPU time of one process, otherwise the wall time of
a DataLoader.
"""

import argparse
import io
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import v2

from semmae.core import process
from semmae.data.dataset import Reader
from semmae.data.loader import batches
from semmae.data.transforms import Crop, OneCrop
from semmae.models import vit
from semmae.parts.part_maps import PartMaps
from semmae.sharding import shard_writer
from semmae.sharding.creatures import draw
from semmae.sharding.sources.sources import Tree

CROP, GRID, SCALE = 224, (14, 14), (0.2, 1.0)
REFERENCE = "torchvision PIL"
V1 = transforms.Compose(
    [
        transforms.RandomResizedCrop(CROP, scale=SCALE, interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(vit.MEAN, vit.STD),
    ]
)  # fmt: skip
V2 = v2.Compose(
    [
        v2.RandomResizedCrop(CROP, scale=SCALE, interpolation=v2.InterpolationMode.BICUBIC), v2.RandomHorizontalFlip(),
        v2.ToDtype(torch.float32, scale=True), v2.Normalize(vit.MEAN, vit.STD),
    ]
)  # fmt: skip


class TensorFiles(Dataset):
    """A dataset of files, which torchvision decodes and transforms as tensors."""

    def __init__(self, files: list[Path]) -> None:
        self.files = [str(file) for file in files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        return V2(decode_jpeg(read_file(self.files[index]), mode=ImageReadMode.RGB))


def open_image(file: str) -> dict[str, Image.Image]:
    """Open an image. litdata stores the bytes of its file as a sample."""
    return {"image": Image.open(file)}


def litdata_epochs(files: list[Path], folder: Path, batch_size: int, workers: int) -> Callable[[], Iterator[object]]:
    """Return a function that starts an epoch of the pipeline of litdata."""
    litdata = import_module("litdata")

    class TensorChunks(litdata.StreamingDataset):
        def __getitem__(self, index: int) -> torch.Tensor:
            return V2(super().__getitem__(index)["image"])

    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        names = [str(file) for file in files]
        litdata.optimize(open_image, names, output_dir=str(folder), num_workers=1, chunk_bytes="64MB")
    chunks = TensorChunks(str(folder), shuffle=True)
    return lambda: iter(litdata.StreamingDataLoader(chunks, batch_size=batch_size, num_workers=workers))


def prepare(root: Path, height: int, width: int, count: int) -> None:
    """Write the images as files of two classes, and as shards."""
    for number in range(count):
        image = draw.draw(0, f"train-{number:06d}", max(height, width)).image[:height, :width]
        file = root / f"files/train/{number % 2}/{number:04d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file, quality=90)
    tree = Tree(kind="folder", path=str(root / "files"), splits=None, val_fraction=None, labels=True, masks=None)
    shard_writer.write(
        root / "shards", {"drawn": tree}, seed=0, short_side=None, samples_per_shard=1000, max_rejects=0.0, workers=0
    )


def pipelines(
    root: Path, batch_size: int, workers: int, join_seconds: list[float]
) -> dict[str, Callable[[], Iterator[object]]]:
    """Return a function for each row that starts an epoch. `join_seconds` receives the time of part maps per image."""
    reader = Reader(root / "shards", "train")
    labels = np.random.default_rng(0).integers(0, 7, (len(reader), GRID[0] * GRID[1]), dtype=np.uint8)
    maps = PartMaps(reader.keys, {"part_map": labels}, {"grid": list(GRID)}, 0)
    load_crop = partial(OneCrop(0, Crop(scale=SCALE, ratio=(3 / 4, 4 / 3), flip=0.5), [CROP]), epoch=0)
    tars = [str(file) for file in sorted((root / "shards").glob("*.tar"))]
    folder, files = ImageFolder(str(root / "files/train"), V1), sorted((root / "files").rglob("*.jpg"))

    def semmae_epoch(maps: PartMaps | None) -> Iterator[dict[str, torch.Tensor]]:
        order = np.random.default_rng(0).permutation(len(reader))
        for batch in batches(reader, order, load_crop, batch_size=batch_size, workers=workers):
            if maps:
                start = time.process_time()
                batch["part_map"] = maps.crops("part_map", batch["index"], batch["span"], GRID)
                join_seconds.append((time.process_time() - start) / len(batch["image"]))
            yield batch

    def torchvision_epoch(dataset: Dataset) -> Iterator[object]:
        return iter(DataLoader(dataset, batch_size, shuffle=True, num_workers=workers))

    def webdataset_epoch() -> Iterator[object]:
        dataset = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False).decode("pil").to_tuple("jpg")
        return iter(
            webdataset.WebLoader(dataset.map_tuple(V1).batched(batch_size), batch_size=None, num_workers=workers)
        )

    installed = find_spec("litdata") is not None
    return {
        "semmae": lambda: semmae_epoch(None),
        "semmae + part maps": lambda: semmae_epoch(maps),
        "semmae + normalized": lambda: (vit.normalize(batch["image"]) for batch in semmae_epoch(None)),
        REFERENCE: lambda: torchvision_epoch(folder),
        "torchvision v2": lambda: torchvision_epoch(TensorFiles(files)),
        "webdataset": webdataset_epoch,
    } | ({"litdata": litdata_epochs(files, root / "litdata", batch_size, workers)} if installed else {})


def rates(rows: dict[str, Callable[[], Iterator[object]]], images: int, rounds: int, workers: int) -> dict[str, list]:
    """Return the images per second of every row in every round, after a warm-up round."""
    measured: dict[str, list[float]] = {name: [] for name in rows}
    clock = time.perf_counter if workers else time.process_time
    for number in range(rounds + 1):
        for name, start_epoch in rows.items():
            start = clock()
            for _ in start_epoch():
                pass
            if number:
                measured[name].append(images / (clock() - start))
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=["160", "256", "500x375"])
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    process.keep_freed_memory()  # as in every stage; all rows are faster with it
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    table: dict[str, dict[str, dict[str, float]]] = {}
    root = Path(tempfile.mkdtemp(prefix="semmae-loader-"))
    try:
        for size in args.sizes:
            width, height = map(int, (size.split("x") * 2)[:2])
            prepare(root / size, height, width, args.images)
            join_seconds: list[float] = []
            rows = pipelines(root / size, args.batch, args.workers, join_seconds)
            measured = rates(rows, args.images, args.rounds, args.workers)
            table[size] = {
                name: {
                    "rate": median(row),
                    "ratio": median(a / b for a, b in zip(row, measured[REFERENCE], strict=True)),
                }
                for name, row in measured.items()
            }
            print(f"{size:10s} {args.images} images, {args.workers} workers {'images/s':>12s} {'ratio':>7s}")
            for name, row in table[size].items():
                print(f"  {name:40s} {row['rate']:10.0f} {row['ratio']:7.2f}")
            seconds_per_image = median(join_seconds)
            join = {
                "seconds": seconds_per_image,
                "share": seconds_per_image * table[size]["semmae + part maps"]["rate"],
            }
            table[size]["join of part maps"] = join
            print(f"  {'join of part maps, per image':40s} {1e6 * seconds_per_image:7.1f} us {join['share']:7.1%}")
    finally:
        shutil.rmtree(root)
    if args.json:
        args.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
