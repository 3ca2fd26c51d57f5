"""Measure how hard the built-in creatures dataset is: baselines, upper bounds and the speed of drawing.

    python -m benchmarks.creatures [--seed 0] [--threads 2] [--json out.json] [--skip-vit]

1. Color and position alone (thumbnails, mean colors, color clusters, the center) should score low.
2. Silhouettes should score high, because species differ in shape.
3. A small ViT with labels should learn the classes, and should fail when the parts are shuffled (the control).
4. Perfect patch labels give an upper bound for any part learner on a 12 x 12 grid.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import MiniBatchKMeans
from sklearn.linear_model import LogisticRegression
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from semmae.core.rng import torch_generator
from semmae.sharding.creatures.draw import SPECIES, draw

SIZE, PATCH, GRID = 96, 8, 12
TRAIN, VAL, VIT_TRAIN, VIT_EPOCHS = 2000, 500, 10000, 10
CLUSTERS = 8


def draw_split(seed: int, split: str, count: int, *, shuffle_parts: bool = False):
    """Draw images (count, SIZE, SIZE, 3), masks (count, SIZE, SIZE) and labels (count,)."""
    keys = (f"{split}-{i:06d}" for i in range(count))
    creatures = [draw(seed, key, SIZE, shuffle_parts=shuffle_parts) for key in keys]
    return tuple(np.stack(column) for column in zip(*creatures, strict=True))


def milliseconds_per_image(seed: int, count: int = 300) -> float:
    start = time.perf_counter()
    draw_split(seed, "speed", count)
    return (time.perf_counter() - start) / count * 1e3


def similarity(query: np.ndarray, bank: np.ndarray) -> np.ndarray:
    """Return the cosine similarity of centered rows, (queries, bank)."""
    mean = bank.mean(axis=0)
    query, bank = query - mean, bank - mean
    norms = np.linalg.norm(query, axis=1)[:, None] * np.linalg.norm(bank, axis=1)
    return query @ bank.T / np.maximum(norms, 1e-8)


def knn_accuracy(similarity: np.ndarray, bank_labels: np.ndarray, labels: np.ndarray, k: int = 20) -> float:
    nearest = np.argsort(-similarity, axis=1)[:, :k]
    votes = np.eye(len(SPECIES))[bank_labels[nearest]].sum(axis=1)
    return float((votes.argmax(axis=1) == labels).mean())


def thumbnails(images: np.ndarray, side: int = 16) -> np.ndarray:
    small = [cv2.resize(i, (side, side), interpolation=cv2.INTER_AREA) for i in images]
    return np.stack(small).reshape(len(images), -1).astype(np.float32) / 255


def silhouettes(masks: np.ndarray, *, crop: bool, angle: float = 0.0, side: int = 16) -> np.ndarray:
    """Return masks (count, side, side) rotated by `angle` degrees; `crop` cuts them to their bounding box."""
    small = []
    for mask in masks:
        shape = np.float32(mask > 0)
        if angle:
            rotation = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), angle, 0.7)
            shape = cv2.warpAffine(shape, rotation, (SIZE, SIZE))
        if crop:
            ys, xs = np.nonzero(shape > 0.5)
            shape = shape[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
        small.append(cv2.resize(shape, (side, side), interpolation=cv2.INTER_AREA))
    return np.stack(small)


def silhouette_knn(train, val, angles: tuple[float, ...]) -> float:
    """Return the k-NN accuracy of cropped silhouettes. A similarity is the maximum over mirror images and rotations."""
    bank = silhouettes(train[1], crop=True).reshape(len(train[1]), -1)
    best = None
    for angle in angles:
        shapes = silhouettes(val[1], crop=True, angle=angle)
        for query in (shapes, shapes[:, :, ::-1]):
            current = similarity(query.reshape(len(query), -1), bank)
            best = current if best is None else np.maximum(best, current)
    return knn_accuracy(best, train[2], val[2])


def histograms(images: np.ndarray, bins: int = 4) -> np.ndarray:
    """Return the mean color and a joint RGB histogram of whole images."""
    cells = (images // (256 // bins)).reshape(len(images), -1, 3) @ np.array([bins * bins, bins, 1])
    counts = np.stack([np.bincount(c, minlength=bins**3) for c in cells]) / cells.shape[1]
    return np.hstack([images.mean(axis=(1, 2)) / 255, np.sqrt(counts)])


def color_probe(train, val) -> float:
    probe = LogisticRegression(max_iter=2000).fit(histograms(train[0]), train[2])
    return float(probe.score(histograms(val[0]), val[2]))


def iou(predicted: np.ndarray, true: np.ndarray) -> float:
    """Return the intersection over union, averaged over images; both inputs are (count, h, w) bool."""
    intersection, union = (predicted & true).sum(axis=(1, 2)), (predicted | true).sum(axis=(1, 2))
    return float(np.mean(intersection / np.maximum(union, 1)))


def patch_pixels(x: np.ndarray) -> np.ndarray:
    """Reshape (count, SIZE, SIZE, ...) to (count, GRID, GRID, PATCH * PATCH, ...)."""
    x = x.reshape(len(x), GRID, PATCH, GRID, PATCH, -1).swapaxes(2, 3)
    return x.reshape(len(x), GRID, GRID, PATCH * PATCH, -1)


def patch_foreground(masks: np.ndarray) -> np.ndarray:
    return patch_pixels(masks > 0)[..., 0].mean(axis=-1) > 0.5


def expand_patches(patches: np.ndarray) -> np.ndarray:
    return patches.repeat(PATCH, axis=1).repeat(PATCH, axis=2)


def color_clusters(train, val, seed: int) -> tuple[float, float]:
    """Return the patch and pixel IoU of k-means on patch colors.

    A cluster counts as foreground if most of its patches on train are foreground.
    """

    def features(images):
        pixels = patch_pixels(images / np.float32(255))
        return np.concatenate([pixels.mean(axis=3), pixels.std(axis=3)], axis=-1).reshape(-1, 6)

    clusters = MiniBatchKMeans(CLUSTERS, batch_size=4096, n_init=3, random_state=seed)
    assigned = clusters.fit_predict(features(train[0]))
    truth = patch_foreground(train[1]).ravel()
    is_foreground = np.array([truth[assigned == c].mean() > 0.5 for c in range(CLUSTERS)])
    predicted = is_foreground[clusters.predict(features(val[0]))].reshape(-1, GRID, GRID)
    return iou(predicted, patch_foreground(val[1])), iou(expand_patches(predicted), val[1] > 0)


def center_mask(train, val) -> float:
    """Return the IoU of one mask for all images: the mean training mask at the threshold that is best on train."""
    mean, truth = (train[1] > 0).mean(axis=0), train[1] > 0
    levels = np.linspace(0.05, 0.95, 19) * mean.max()
    scores = [iou(np.broadcast_to(mean > level, truth.shape), truth) for level in levels]
    fixed = mean > levels[int(np.argmax(scores))]
    return iou(np.broadcast_to(fixed, val[1].shape), val[1] > 0)


def conv_stem(width: int) -> nn.Sequential:
    """Build a stem of small convolutions, which trains from scratch in minutes."""

    def conv(before: int, after: int, kernel: int, stride: int, padding: int) -> list[nn.Module]:
        layer = nn.Conv2d(before, after, kernel, stride, padding, bias=False)
        return [layer, nn.BatchNorm2d(after), nn.ReLU()]

    layers = conv(3, 64, 4, 4, 0) + conv(64, 64, 3, 1, 1) + conv(64, width, 3, 2, 1)
    return nn.Sequential(*layers, nn.Conv2d(width, width, 1))


def vit_top1(train, val, seed: int, epochs: int, log: Callable[[str], None]) -> float:
    """Train a ViT (width 128, depth 4, patch 8) with labels, flips and shifts; return the top-1 accuracy on val."""
    torch.manual_seed(seed)
    model = VisionTransformer(
        img_size=SIZE, patch_size=PATCH, embed_dim=128, depth=4, num_heads=4,
        num_classes=len(SPECIES), class_token=False, global_pool="avg",
    )  # fmt: skip
    model.patch_embed.proj = conv_stem(128)
    model = model.to(memory_format=torch.channels_last)
    for block in model.blocks:
        block.attn.fused_attn = False  # explicit attention is faster on CPUs
    images, labels = (torch.from_numpy(x) for x in (train[0], train[2].astype(np.int64)))
    batch, rng = 64, torch_generator(seed, "vit")
    steps = epochs * (len(images) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, steps, pct_start=0.1)

    def logits(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(x.permute(0, 3, 1, 2).float() / 127.5 - 1).float()

    def top1() -> float:
        model.eval()
        with torch.inference_mode():
            predictions = torch.cat([logits(torch.from_numpy(x)).argmax(1) for x in np.split(val[0], 10)])
        model.train()
        return float((predictions.numpy() == val[2]).mean())

    start = time.perf_counter()
    for epoch in range(epochs):
        for rows in torch.randperm(len(images), generator=rng).split(batch)[: len(images) // batch]:
            x = images[rows]
            if torch.rand((), generator=rng) < 0.5:
                x = x.flip(2)
            dy, dx = torch.randint(-12, 13, (2,), generator=rng).tolist()
            x = x.roll((dy, dx), dims=(1, 2))
            loss = F.cross_entropy(logits(x), labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        log(f"  epoch {epoch + 1}/{epochs}: loss {loss:.3f}, top1 {top1():.3f}, "
            f"{time.perf_counter() - start:.0f} s")  # fmt: skip
    return top1()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--skip-vit", action="store_true", help="skip the two trainings of a ViT")
    args = parser.parse_args()
    seed = args.seed
    cv2.setNumThreads(1)
    torch.set_num_threads(args.threads)

    train, val = draw_split(seed, "train", TRAIN), draw_split(seed, "val", VAL)
    uncropped = (silhouettes(s[1], crop=False).reshape(len(s[1]), -1) for s in (val, train))
    area = (val[1] > 0).mean(axis=(1, 2))
    patch_iou, pixel_iou = color_clusters(train, val, seed)
    rows = {
        "milliseconds_per_image": milliseconds_per_image(seed),
        "foreground_area_p05": float(np.quantile(area, 0.05)),
        "foreground_area_mean": float(area.mean()),
        "foreground_area_p95": float(np.quantile(area, 0.95)),
        "thumbnail_knn_top1": knn_accuracy(similarity(thumbnails(val[0]), thumbnails(train[0])), train[2], val[2]),
        "color_histogram_probe_top1": color_probe(train, val),
        "silhouette_uncropped_knn_top1": knn_accuracy(similarity(*uncropped), train[2], val[2]),
        "silhouette_crop_mirror_knn_top1": silhouette_knn(train, val, (0.0,)),
        "silhouette_crop_mirror_turn_knn_top1": silhouette_knn(train, val, (-24, -12, 0, 12, 24)),
        "color_clusters_patch_iou": patch_iou,
        "color_clusters_pixel_iou": pixel_iou,
        "center_mask_pixel_iou": center_mask(train, val),
        "perfect_patches_pixel_iou": iou(expand_patches(patch_foreground(val[1])), val[1] > 0),
    }
    if not args.skip_vit:
        for name, shuffled in (("vit_top1", False), ("vit_shuffled_parts_top1", True)):
            print(f"{name}: {VIT_TRAIN} images, {VIT_EPOCHS} epochs", flush=True)
            sets = [
                draw_split(seed, split, count, shuffle_parts=shuffled)
                for split, count in (("train", VIT_TRAIN), ("val", VAL))
            ]
            rows[name] = vit_top1(*sets, seed, VIT_EPOCHS, lambda line: print(line, flush=True))
    print(f"seed {seed}, {TRAIN} train, {VAL} val, {SIZE} px, {torch.get_num_threads()} threads")
    for name, value in rows.items():
        print(f"{name:40s} {value:.3f}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
