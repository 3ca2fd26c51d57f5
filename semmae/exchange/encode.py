"""Features of many images in one Parquet file: key, class token, mean of the patch tokens; in memory is one row group.

- `located`: a dataset by its name, or a folder of images with any tree below it.
- `encode`: all their images through an encoder, in the evaluation view, into a file that is whole or absent.

Columns: `key` (in a folder: the path below it); of a dataset also `split` and `label` (null where there is none);
`class_token` and `patch_mean`, fixed-size lists of float32. The file's metadata says under `semmae`, as JSON, which
encoder it was, the names of the labels, and what was skipped and why.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from semmae.core import distributed
from semmae.core.atomic_files import atomic_write
from semmae.data import decoding
from semmae.data.dataset import Reader, batches
from semmae.evaluation.features import CenterView
from semmae.models import vit
from semmae.models.frozen_encoder import FrozenEncoder
from semmae.sharding import worker_pool
from semmae.sharding.sources.layout import EXTENSIONS
from semmae.sharding.sources.sources import Blob

ROWS = 2048  # of a row group: 13 MB of features at width 768


class Skipped(NamedTuple):
    """An image without features."""

    key: str
    reason: str


@dataclass(frozen=True)
class EncodeOptions:
    """How it is computed; of these only `precision` moves a feature."""

    batch_size: int
    workers: int  # processes that load images; 0 loads between the batches
    device: torch.device
    precision: distributed.Precision


class Folder(Reader):
    """The image files in a folder and below it: links followed, hidden ones left out, sorted by path, no labels."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.keys = sorted(_files(root))
        if not self.keys:
            raise ValueError(f"{root} holds no images; known are {', '.join(EXTENSIONS)}")

    def image(self, index: Any, *, at_least: tuple[int, int] = (0, 0)) -> UInt8[np.ndarray, "h w 3"]:
        """An image in RGB, upright. ValueError or OSError: why there is none."""
        path = self.root / self.keys[index]
        return decoding.to_rgb(Blob(str(path), 0, path.stat().st_size).read(), at_least=at_least)


@dataclass(frozen=True)
class View:
    """The evaluation view. A file that is no image is a `reason` and no pixels; a damaged dataset is to be mended."""

    center: CenterView

    def __call__(self, reader: Reader, index: int) -> dict[str, Any]:
        try:
            return {**self.center(reader, index), "index": index, "reason": ""}
        except (ValueError, OSError) as error:
            if not isinstance(reader, Folder):
                raise
            size, reason = self.center.img_size, getattr(error, "strerror", None) or str(error)
            return {"image": np.zeros((3, size, size), np.uint8), "index": index, "reason": reason}


def located(name: str, shards: Path) -> Reader:
    """The dataset of that name in the folder `shards`, all its splits; else the images in the folder `name`."""
    for dataset in (shards / name, Path(name)):
        if (dataset / "index.parquet").is_file():
            return Reader(dataset)
    if Path(name).is_dir():
        return Folder(Path(name))
    known = ", ".join(sorted(index.parent.name for index in shards.glob("*/index.parquet"))) or "none"
    raise ValueError(f"{name} is neither a folder nor a dataset in {shards}, which has {known}")


def encode(reader: Reader, encoder: FrozenEncoder, out: Path, compute: EncodeOptions) -> list[Skipped]:
    """Write the features of every image to `out`; those of a folder that are none come back with a reason each.

    ValueError, and no file: none could be read, features are not finite, a dataset is damaged.
    """
    skipped: list[Skipped] = []
    width, columns = encoder.network.embed_dim, _columns(reader)
    schema = pa.schema([
        pa.field("key", pa.string(), nullable=False),
        *(pa.field(name, column.type) for name, column in columns.items()),
        *(pa.field(name, pa.list_(pa.float32(), width), nullable=False) for name in ("class_token", "patch_mean")),
    ])  # fmt: skip
    with (
        atomic_write(out) as temporary,
        pq.ParquetWriter(temporary, schema, use_dictionary=list(columns), write_statistics=["key"]) as writer,
    ):
        for ids, features in _groups(reader, encoder, compute, skipped):
            arrays = [
                pa.array([reader.keys[index] for index in ids], pa.string()),
                *(column.take(pa.array(ids)) for column in columns.values()),
                *(pa.FixedSizeListArray.from_arrays(feature.numpy().reshape(-1), width) for feature in features),
            ]
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
        if len(skipped) == len(reader):
            raise ValueError(f"none of {len(skipped)} images can be read; {skipped[0].key}: {skipped[0].reason}")
        about = {
            "encoder": encoder.digest, "img_size": encoder.config["img_size"], "precision": compute.precision,
            "class_names": [] if isinstance(reader, Folder) else reader.class_names,
            "skipped": [entry._asdict() for entry in skipped],
        }  # fmt: skip
        writer.add_key_value_metadata({"semmae": json.dumps(about)})
    return skipped


@torch.inference_mode()
def pair(encoder: FrozenEncoder, images: UInt8[Tensor, "b 3 s s"], compute: EncodeOptions) -> Float[Tensor, "2 b d"]:
    """Class token and mean of the patch tokens, in float32 on the CPU."""
    network, mean, std = encoder.network, tuple(encoder.config["mean"]), tuple(encoder.config["std"])
    with distributed.autocast(compute.device, compute.precision):
        tokens = vit.encode_tokens(network, vit.normalize(images.to(compute.device), mean, std)).float()
    return torch.stack([tokens[:, 0], tokens[:, network.num_prefix_tokens :].mean(1)]).cpu()


def _groups(
    reader: Reader, encoder: FrozenEncoder, compute: EncodeOptions, skipped: list[Skipped]
) -> Iterator[tuple[list[int], Float[Tensor, "2 m d"]]]:
    """Row groups: the numbers of images that can be read and their features, which the next group overwrites.

    All groups share one buffer: features kept as they come would lie scattered over a heap that grows around them.
    """
    b, network = compute.batch_size, encoder.network.to(compute.device)
    vit.use_fastest_attention(network, compute.device)
    view = View(CenterView(encoder.config["img_size"]))
    loaded = batches(reader, np.arange(len(reader)), view, batch_size=b, workers=compute.workers)
    buffer, ids = torch.empty(2, max(ROWS, b), network.embed_dim), list[int]()
    for batch in worker_pool.watched(loaded, -(-len(reader) // b), f"encode, batches of {b}"):
        for index, reason in zip(batch["index"].tolist(), batch["reason"], strict=True):
            if reason:
                skipped.append(Skipped(reader.keys[index], reason))
        good = torch.tensor([not reason for reason in batch["reason"]])
        if not good.any():
            continue
        found, features = batch["index"][good].tolist(), pair(encoder, batch["image"][good], compute)
        finite = features.isfinite().all(2).all(0)
        if not finite.all():
            bad = reader.keys[found[int((~finite).nonzero()[0])]]
            raise ValueError(f"the features of {bad} are not finite; try --precision fp32, or train the network again")
        if len(ids) + len(found) > buffer.shape[1]:
            yield ids, buffer[:, : len(ids)]
            ids = []
        buffer[:, len(ids) : len(ids) + len(found)] = features
        ids += found
    if ids:
        yield ids, buffer[:, : len(ids)]


def _columns(reader: Reader) -> dict[str, pa.Array]:
    """What else is known of the images of a dataset."""
    if isinstance(reader, Folder):
        return {}
    table = pq.read_table(reader.dataset / "index.parquet", columns=["split", "label"])
    return {name: table[name].combine_chunks() for name in table.column_names}


def _files(root: Path) -> Iterator[str]:
    """The paths below `root` of what has the name of an image."""
    for folder, below, names in os.walk(root, followlinks=True):
        here = os.path.realpath(folder) + "/"
        below[:] = [
            name for name in below
            if not name.startswith(".") and not here.startswith(os.path.realpath(f"{folder}/{name}") + "/")  # no loops
        ]  # fmt: skip
        for name in names:
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                yield os.path.relpath(os.path.join(folder, name), root)
