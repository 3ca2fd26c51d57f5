"""Taught teachers: ViTs that were taught the true label of every patch.

Taught teachers are an instrument for measuring part learning, never part of a result. Their tokens are known to tell
parts apart, so that every fault of learned parts is a fault of the part learner. With noise on their tokens, they stand
for teachers of any quality.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Integer, UInt8
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from semmae.core import optim
from semmae.core.rng import numpy_generator, seeded
from semmae.data.dataset import Reader
from semmae.data.decoding import IGNORE
from semmae.data.loader import batches
from semmae.data.patch_masks import WholeView, cell_counts, majority_labels
from semmae.evaluation.part_metrics import contingency, foreground_iou
from semmae.evaluation.splits import open_masked_splits
from semmae.models import vit
from semmae.models.teacher import save_teacher

SHAPE = {"img_size": 96, "patch_size": 8, "embed_dim": 128, "depth": 4, "num_heads": 4}
SIZE, GRID = 96, (12, 12)
BATCH, LR, WARMUP_EPOCHS, WEIGHT_DECAY, BETAS = 32, 2.5e-3, 2, 0.02, (0.9, 0.98)
MAX_SHIFT = 4  # pixels; half a patch, so that a token cannot depend on the position of the patch grid


class MaskedImages(NamedTuple):
    """All images of a split, with a true label for each pixel."""

    images: UInt8[np.ndarray, "s 3 h w"]
    masks: UInt8[np.ndarray, "s h w"]


@dataclass(frozen=True)
class TaughtScores:
    """How well the linear head of a taught teacher labels the patches of val."""

    accuracy: float  # share of the patches of the true foreground that get their true label
    fg_iou: float  # mean IoU of found and true foreground over images, per patch


def teach_all(dataset: Path, out: Path, *, seeds: list[int], epochs: int) -> None:
    """Teach one ViT per seed, save each as a teacher in `out`/taught_<seed>, and print its scores."""
    train_reader, val_reader = open_masked_splits(dataset)
    num_classes = len(train_reader.mask_names)
    train, val = load_masked_images(train_reader), load_masked_images(val_reader)
    for seed in seeds:
        network, head = teach(train, num_classes=num_classes, seed=seed, epochs=epochs)
        scores = score_head(network, head, val, num_classes=num_classes)
        config = SHAPE | {"mean": list(vit.MEAN), "std": list(vit.STD), "class_token": False}
        save_teacher(out / f"taught_{seed}", network, config)
        print(
            f"{out / f'taught_{seed}'}: patch accuracy in the foreground {scores.accuracy:.3f}, foreground IoU "
            f"{scores.fg_iou:.3f}",
            flush=True,
        )


def load_masked_images(reader: Reader) -> MaskedImages:
    """Load whole images and their masks at the size of the teacher's images."""
    view = WholeView(SIZE, (SIZE, SIZE), num_classes=len(reader.mask_names))
    images, masks = [], []
    for batch in batches(reader, np.arange(len(reader)), view, batch_size=BATCH, workers=0):
        images.append(batch["image"].numpy())
        masks.append(majority_labels(batch["counts"].numpy()).astype(np.uint8).reshape(-1, SIZE, SIZE))
    return MaskedImages(np.concatenate(images), np.concatenate(masks))


def teach(train: MaskedImages, *, num_classes: int, seed: int, epochs: int) -> tuple[VisionTransformer, nn.Linear]:
    """Train a ViT and a linear head on its output tokens to predict the true label of every patch."""
    with seeded(seed, "taught"):
        network = vit.build(SHAPE)
        head = nn.Linear(SHAPE["embed_dim"], num_classes)
    vit.use_fastest_attention(network, torch.device("cpu"))
    model = nn.ModuleDict({"network": network, "head": head})
    optimizer = optim.adamw(model, weight_decay=WEIGHT_DECAY, betas=BETAS)
    rng, steps_per_epoch = numpy_generator(seed, "taught"), max(1, len(train.images) // BATCH)
    total_steps, warmup = epochs * steps_per_epoch, min(WARMUP_EPOCHS, epochs) * steps_per_epoch
    for epoch in range(epochs):
        order, total = rng.permutation(len(train.images)), 0.0
        for step in range(steps_per_epoch):
            rate = optim.warmup_cosine(
                epoch * steps_per_epoch + step, steps=total_steps, warmup=warmup, peak=LR, end=0.0
            )
            optim.set_rate(optimizer, rate)
            images, masks = shift_and_flip(train, order[step * BATCH : (step + 1) * BATCH], rng)
            true = torch.from_numpy(patch_labels(masks, num_classes))
            loss = F.cross_entropy(_logits(network, head, images).flatten(0, 1), true.flatten(), ignore_index=IGNORE)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        print(f"seed {seed}, epoch {epoch + 1}/{epochs}: loss {total / steps_per_epoch:.3f}", flush=True)
    return network, head


def _logits(network: VisionTransformer, head: nn.Linear, images: UInt8[np.ndarray, "b 3 h w"]) -> Tensor:
    tokens = vit.encode_tokens(network, vit.normalize(torch.from_numpy(images)))
    return head(tokens[:, network.num_prefix_tokens :])


def shift_and_flip(data: MaskedImages, indices: Integer[np.ndarray, " b"], rng: np.random.Generator) -> MaskedImages:
    """Shift each image and its mask by up to `MAX_SHIFT` pixels, repeating the border, and flip half of the images."""
    images, masks = [], []
    for index in indices:
        shifts = rng.integers(-MAX_SHIFT, MAX_SHIFT + 1, (2, 1))
        rows, columns = (np.arange(SIZE) + shifts).clip(0, SIZE - 1)
        if rng.random() < 0.5:
            columns = columns[::-1]
        images.append(data.images[index][:, rows[:, None], columns])
        masks.append(data.masks[index][rows[:, None], columns])
    return MaskedImages(np.stack(images), np.stack(masks))


def patch_labels(masks: UInt8[np.ndarray, "b h w"], num_classes: int) -> Integer[np.ndarray, "b n"]:
    """Return the true label of each patch; `IGNORE` for a patch without a labeled pixel."""
    return np.stack([majority_labels(cell_counts(mask, grid=GRID, num_classes=num_classes)) for mask in masks])


@torch.no_grad()
def score_head(network: VisionTransformer, head: nn.Linear, val: MaskedImages, *, num_classes: int) -> TaughtScores:
    """Score the labels that the linear head gives to the patches of val."""
    network.eval()
    found = np.concatenate(
        [_logits(network, head, val.images[i : i + BATCH]).argmax(-1).numpy() for i in range(0, len(val.images), BATCH)]
    )
    true = patch_labels(val.masks, num_classes)
    is_part = (true > 0) & (true < num_classes)
    ious = []
    for labels, mask in zip(found, val.masks, strict=True):
        counts = cell_counts(mask, grid=GRID, num_classes=num_classes)
        table = contingency(labels, counts, num_labels=num_classes, level="patch")
        if (iou := foreground_iou(table, np.arange(num_classes) > 0)) is not None:
            ious.append(iou)
    return TaughtScores(float((found == true)[is_part].mean()), float(np.mean(ious)))
