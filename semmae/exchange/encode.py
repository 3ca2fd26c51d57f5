"""Write the features of many images to one Parquet file: class token and mean of the patch tokens.

The images are a dataset or a folder. The encoder sees the same center crop as in evaluations. Memory holds the features
of one row group.

Columns:
    key: The key of a sample, or the relative path of a file.
    split, label: Only for a dataset. `label` is null for a sample without a label.
    class_token, patch_mean: Fixed-size lists of float32.

The file metadata has a JSON object `semmae`. It holds the digest of the encoder, its image size and precision, the
class names, and the skipped files with reasons.
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

from semmae.console.tracking import tracked
from semmae.core import distributed
from semmae.core.atomic_files import atomic_write
from semmae.data.dataset import ImageSequence, Reader
from semmae.data.loader import batches
from semmae.data.transforms import FullImage
from semmae.evaluation.views import CenterView
from semmae.models import vit
from semmae.models.frozen_encoder import FrozenEncoder
from semmae.sharding.image_files import ImageFiles
from semmae.sharding.sources.source_item import EXTENSIONS

ROW_GROUP = 2048  # images; 13 MB of features at width 768


class Skipped(NamedTuple):
    """A file that cannot be used, with the reason."""

    key: str
    reason: str


@dataclass(frozen=True)
class EncodeOptions:
    """Options of the computation. Only `precision` changes the features."""

    batch_size: int
    workers: int  # processes that load images; 0: this process loads them
    device: torch.device
    precision: distributed.Precision


class ImageFolder(ImageFiles):
    """The image files in a folder and its subfolders, sorted by path; an `ImageSequence`.

    Follows links. Skips hidden files and folders.

    Attributes:
        other_files: The files without the extension of an image, by their relative paths.

    Raises:
        ValueError: The folder has no image files.
    """

    def __init__(self, root: Path) -> None:
        files = sorted(_list_files(root))
        super().__init__(root, [file for file in files if file.lower().endswith(EXTENSIONS)])
        self.other_files = [file for file in files if not file.lower().endswith(EXTENSIONS)]
        if not self.keys:
            raise ValueError(f"{root} holds no images; expected files with the extensions {', '.join(EXTENSIONS)}")


@dataclass(frozen=True)
class SkippingView:
    """A view of an image. An unreadable file of a folder gives black pixels and a `reason`."""

    view: CenterView | FullImage

    def __call__(self, images: ImageSequence, index: int) -> dict[str, Any]:
        try:
            return {"image": self.view(images, index)["image"], "index": index, "reason": ""}
        except (ValueError, OSError) as error:
            if isinstance(images, Reader):  # its images were decoded when it was written, so it is damaged
                raise
            size, reason = self.view.img_size, getattr(error, "strerror", None) or str(error)
            return {"image": np.zeros((3, size, size), np.uint8), "index": index, "reason": reason}


def open_images(name: str, shards: Path) -> Reader | ImageFolder:
    """Open a dataset, given by its name in `shards` or by its folder, or a folder of images.

    Raises:
        ValueError: `name` is neither a dataset nor a folder.
    """
    for dataset in (shards / name, Path(name)):
        if (dataset / "index.parquet").is_file():
            return Reader(dataset)
    if Path(name).is_dir():
        return ImageFolder(Path(name))
    known = ", ".join(sorted(index.parent.name for index in shards.glob("*/index.parquet"))) or "none"
    raise ValueError(f"{name} is neither a folder nor a dataset in {shards}; expected a folder, or one of: {known}")


def encode(images: ImageSequence, encoder: FrozenEncoder, out: Path, options: EncodeOptions) -> list[Skipped]:
    """Write the features of all images to a Parquet file, atomically.

    Returns:
        The unreadable files of a folder, with reasons.

    Raises:
        ValueError: No image can be read, features are not finite, or a dataset is damaged.
    """
    skipped: list[Skipped] = []
    width, columns = encoder.network.embed_dim, _dataset_columns(images)
    schema = pa.schema([
        pa.field("key", pa.string(), nullable=False),
        *(pa.field(name, column.type) for name, column in columns.items()),
        *(pa.field(name, pa.list_(pa.float32(), width), nullable=False) for name in ("class_token", "patch_mean")),
    ])  # fmt: skip
    with (
        atomic_write(out) as temporary,
        pq.ParquetWriter(temporary, schema, use_dictionary=list(columns), write_statistics=["key"]) as writer,
    ):
        for indices, features in _row_groups(images, encoder, options, skipped):
            arrays = [
                pa.array([images.keys[index] for index in indices], pa.string()),
                *(column.take(pa.array(indices)) for column in columns.values()),
                *(pa.FixedSizeListArray.from_arrays(feature.numpy().reshape(-1), width) for feature in features),
            ]
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
        if len(skipped) == len(images):
            raise ValueError(f"none of {len(skipped)} images can be read; {skipped[0].key}: {skipped[0].reason}")
        metadata = {
            "encoder": encoder.digest,
            "img_size": encoder.config["img_size"],
            "precision": options.precision,
            "class_names": images.class_names if isinstance(images, Reader) else [],
            "skipped": [entry._asdict() for entry in skipped],
        }
        writer.add_key_value_metadata({"semmae": json.dumps(metadata)})
    return skipped


@torch.inference_mode()
def class_token_and_patch_mean(
    encoder: FrozenEncoder, images: UInt8[Tensor, "b 3 s s"], options: EncodeOptions
) -> Float[Tensor, "2 b d"]:
    """Return class tokens and means of the patch tokens, in float32 on the CPU."""
    network, mean, std = encoder.network, tuple(encoder.config["mean"]), tuple(encoder.config["std"])
    with distributed.autocast(options.device, options.precision):
        tokens = vit.encode_tokens(network, vit.normalize(images.to(options.device), mean, std)).float()
    return torch.stack([tokens[:, 0], tokens[:, network.num_prefix_tokens :].mean(1)]).cpu()


def _row_groups(
    images: ImageSequence, encoder: FrozenEncoder, options: EncodeOptions, skipped: list[Skipped]
) -> Iterator[tuple[list[int], Float[Tensor, "2 m d"]]]:
    """Yield the indices of readable images with their features, and append the others to `skipped`.

    All groups share one buffer: use the features of a group before the next one. A new tensor per batch would fragment
    the heap.
    """
    batch_size, network = options.batch_size, encoder.network.to(options.device)
    vit.use_fastest_attention(network, options.device)
    view = SkippingView(CenterView(encoder.config["img_size"]))
    loaded = batches(images, np.arange(len(images)), view, batch_size=batch_size, workers=options.workers)
    buffer, indices = torch.empty(2, max(ROW_GROUP, batch_size), network.embed_dim), list[int]()
    for batch in tracked(loaded, -(-len(images) // batch_size), f"encode, batches of {batch_size}"):
        for index, reason in zip(batch["index"].tolist(), batch["reason"], strict=True):
            if reason:
                skipped.append(Skipped(images.keys[index], reason))
        readable = torch.tensor([not reason for reason in batch["reason"]])
        if not readable.any():
            continue
        new_indices = batch["index"][readable].tolist()
        features = class_token_and_patch_mean(encoder, batch["image"][readable], options)
        finite = features.isfinite().all(2).all(0)
        if not finite.all():
            key = images.keys[new_indices[int((~finite).nonzero()[0])]]
            raise ValueError(f"the features of {key} are not finite; try --precision fp32, or train the network again")
        if len(indices) + len(new_indices) > buffer.shape[1]:
            yield indices, buffer[:, : len(indices)]
            indices = []
        buffer[:, len(indices) : len(indices) + len(new_indices)] = features
        indices += new_indices
    if indices:
        yield indices, buffer[:, : len(indices)]


def _dataset_columns(images: ImageSequence) -> dict[str, pa.Array]:
    """Read the columns `split` and `label` of a dataset; return {} for a folder."""
    if not isinstance(images, Reader):
        return {}
    table = pq.read_table(images.dataset / "index.parquet", columns=["split", "label"])
    return {name: table[name].combine_chunks() for name in table.column_names}


def _list_files(root: Path) -> Iterator[str]:
    """Yield the files below `root` that are not hidden, as paths relative to `root`."""
    for folder, subfolders, names in os.walk(root, followlinks=True):
        target = os.path.realpath(folder) + "/"
        subfolders[:] = [  # without links to this folder or to one above it, which form a loop
            name
            for name in subfolders
            if not name.startswith(".") and not target.startswith(os.path.realpath(f"{folder}/{name}") + "/")
        ]
        for name in names:
            if not name.startswith("."):
                yield os.path.relpath(os.path.join(folder, name), root)
