"""Segmentation by frozen patch tokens: a linear head trained on them, and the vote of their nearest neighbours.

- `token_maps`: what is read out, images -> patch tokens on their grid.
- `train_heads`: batch norm without parameters and a linear layer per patch, one head per learning rate (as CAPI and
  Pixio probe): logits made as large as the mask, cross entropy of pixels, AdamW, warm-up and half a cosine.
- `linear`: all heads learn on a part of train; the one that does best on the rest is the probe.
- `Bank`, `knn`: labelled patches of train, at most so many; the number of neighbours is chosen on the same rest.
"""

import copy
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer, UInt8
from pydantic import Field
from pydantic.dataclasses import dataclass as params
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from semmae import dist, metrics, optim, segmentation_metrics, vit
from semmae.augment import WHOLE, crop_part_map
from semmae.heads import INIT_STD
from semmae.images import IGNORE
from semmae.params import STRICT
from semmae.part_metrics import cell_counts
from semmae.reader import Reader, batches
from semmae.rng import numpy_generator, torch_generator
from semmae.run import Run
from semmae.segmentation import Inference, Predict, TrainCrop, WholeImage, enlarged, evaluate, starts
from semmae.teacher import Teacher

BETAS = (0.9, 0.95)  # CAPI's probes

Encode = Callable[[UInt8[Tensor, "b 3 s s"]], Float[Tensor, "b d h w"]]
Positive = Annotated[int, Field(ge=1)]


@params(frozen=True, config=STRICT)
class Linear:
    """The linear probe; `lr = base_lr * batch_size / 256`."""

    base_lrs: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)]
    weight_decay: Annotated[float, Field(ge=0)]
    epochs: Positive
    warmup_epochs: Annotated[int, Field(ge=0)]
    batch_size: Positive


@params(frozen=True, config=STRICT)
class Knn:
    """The vote of neighbours."""

    k: Annotated[list[Positive], Field(min_length=1)]
    temperature: Annotated[float, Field(gt=0)]
    patches: Positive  # of train that may vote


class Train(NamedTuple):
    """The masked samples of train, and those of them on which settings are chosen."""

    reader: Reader
    held_out: Integer[np.ndarray, " h"]

    @property
    def kept(self) -> Integer[np.ndarray, " k"]:
        """The samples to learn from while settings are chosen."""
        return np.setdiff1d(np.arange(len(self.reader)), self.held_out)

    @property
    def num_classes(self) -> int:
        return len(self.reader.mask_names)

    def best(self, predict: Predict, how: Inference) -> int:
        """The variant of `predict` with the highest mIoU on the held-out samples; of equals the first."""
        counts = evaluate(predict, self.reader.select(self.held_out), how, num_classes=self.num_classes)
        return int(np.argmax(np.nan_to_num(np.nanmean(segmentation_metrics.iou(counts.sum(1)), axis=1))))


class Probe(NamedTuple):
    """A predictor of one variant, the setting that was chosen for it, and the curve of its training."""

    predict: Predict
    chosen: dict[str, float]
    history: list[dict[str, float]]


def hold_out(reader: Reader, *, share: float, seed: int) -> Train:
    """Set aside `share` of the samples, at least one, and leave at least one."""
    if len(reader) < 2:
        raise ValueError("train has a single image with a mask; a probe needs two to choose its settings")
    count = min(len(reader) - 1, max(1, round(share * len(reader))))
    return Train(reader, np.sort(numpy_generator(seed, "holdout").permutation(len(reader))[:count]))


def token_maps(network: VisionTransformer | Teacher, *, device: torch.device, precision: dist.Precision) -> Encode:
    """Images -> the normalised patch tokens of a frozen network, in float32, on their grid; the images are square."""
    network = network.to(device).eval()
    vit.use_fastest_attention(network, device)

    @torch.no_grad()
    def encode(images: UInt8[Tensor, "b 3 s s"]) -> Float[Tensor, "b d h w"]:
        with dist.autocast(device, precision):
            if isinstance(network, Teacher):
                found = network.encode(images).patch
            else:
                found = vit.tokens(network, vit.normalise(images))[:, network.num_prefix_tokens :]
        b, n, d = found.shape
        side = round(n**0.5)
        return found.float().transpose(1, 2).reshape(b, d, side, side)

    return encode


class LinearHeads(nn.Module):
    """Linear classifiers of the same normalised tokens, one per learning rate: equal at first, then independent.

    The statistics of the norm are those of all that was seen in training: the tokens are frozen, so none are outdated.
    """

    def __init__(self, width: int, num_classes: int, num_heads: int, seed: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width, affine=False, momentum=None)
        head = nn.Conv2d(width, num_classes, kernel_size=1)
        head.weight.data.copy_(torch.randn(head.weight.shape, generator=torch_generator(seed, "head")) * INIT_STD)
        head.bias.data.zero_()  # type: ignore[union-attr]  # it has one
        self.heads = nn.ModuleList(copy.deepcopy(head) for _ in range(num_heads))

    def forward(self, tokens: Float[Tensor, "b d h w"]) -> list[Float[Tensor, "b c h w"]]:
        """The logits of every head."""
        x = self.norm(tokens)
        return [head(x) for head in self.heads]


def pixel_loss(logits: Float[Tensor, "b c h w"], mask: UInt8[Tensor, "b H W"]) -> Float[Tensor, ""]:
    """The mean cross entropy over the pixels whose mask says anything; 0 where there are none."""
    scores = enlarged(logits.float(), (mask.shape[1], mask.shape[2]))
    total = F.cross_entropy(scores, mask.long(), ignore_index=IGNORE, reduction="sum")
    return total / (mask != IGNORE).sum().clamp(min=1)


def train_heads(
    recipe: Linear, encode: Encode, reader: Reader, *, width: int, crops: TrainCrop, workers: int, world: dist.World,
    run: Run,
) -> LinearHeads:  # fmt: skip
    """Train a head per learning rate at once; the run's history has their mean loss, and each under its rate."""
    model = LinearHeads(width, len(reader.mask_names), len(recipe.base_lrs), crops.seed).to(world.device)
    parallel = dist.parallel(model, world)
    groups = [{"params": list(head.parameters())} for head in model.heads]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=BETAS, weight_decay=recipe.weight_decay)

    for step in run.steps(
        reader, crops, batch_size=recipe.batch_size, epochs=recipe.epochs, seed=crops.seed, workers=workers,
        state={"model": model, "optimizer": optimizer},
    ):  # fmt: skip
        warmup = recipe.warmup_epochs * step.per_epoch
        lr = optim.warmup_cosine(step.number, steps=step.steps, warmup=warmup, peak=recipe.batch_size / 256, end=0.0)
        for group, base_lr in zip(optimizer.param_groups, recipe.base_lrs, strict=True):
            group["lr"] = base_lr * lr
        mask = step.batch["mask"].to(world.device)
        with torch.no_grad():
            tokens = encode(step.batch["image"].to(world.device))
        logits = parallel(tokens)
        losses, gradients = zip(*(_loss_and_gradient(x, mask) for x in logits), strict=True)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(logits, gradients)
        optimizer.step()
        each = {f"loss_{base_lr:g}": loss for base_lr, loss in zip(recipe.base_lrs, losses, strict=True)}
        run.record(loss=torch.stack(losses).mean(), lr_share=lr, **each)
    return model.eval()


def linear(
    recipe: Linear, encode: Encode, train: Train, *, width: int, crops: TrainCrop, how: Inference, run: Run
) -> Probe:
    """The head of the learning rate that does best on the held-out samples."""
    kept = train.reader.select(train.kept)
    model = train_heads(recipe, encode, kept, width=width, crops=crops, workers=how.workers, world=how.world, run=run)
    best = train.best(lambda images: torch.stack(model(encode(images)), dim=1), how)
    base_lr, head = recipe.base_lrs[best], model.heads[best]
    history = [
        {"epoch": row["epoch"], "lr": base_lr * row["lr_share"], "loss": row[f"loss_{base_lr:g}"]}
        for row in run.history
    ]
    return Probe(lambda images: head(model.norm(encode(images)))[:, None], {"base_lr": base_lr}, history)


class Bank(NamedTuple):
    """Labelled patches of train, and the sample that each comes from."""

    tokens: Float[Tensor, "m d"]
    labels: Integer[Tensor, " m"]
    samples: Integer[Tensor, " m"]

    def predict(self, encode: Encode, *, num_classes: int, ks: list[int], temperature: float) -> Predict:
        """Windows -> the share of the vote that each class has among the k nearest patches, a variant per k."""

        def votes(images: UInt8[Tensor, "b 3 s s"]) -> Float[Tensor, "b l c h w"]:
            found = encode(images)
            b, d, h, w = found.shape
            queries = found.permute(0, 2, 3, 1).reshape(-1, d)
            each = [
                metrics.vote(self.tokens, self.labels, queries, num_classes=num_classes, k=k, temperature=temperature)
                for k in ks
            ]
            return torch.stack(each).view(len(ks), b, h, w, num_classes).permute(1, 0, 4, 2, 3)

        return votes

    def without(self, samples: Integer[np.ndarray, " h"]) -> "Bank":
        """The patches of other samples."""
        kept = ~torch.isin(self.samples, torch.from_numpy(samples).to(self.samples.device))
        return Bank(*(column[kept] for column in self))


def bank(encode: Encode, reader: Reader, how: Inference, *, patches: int, seed: int) -> Bank:
    """At most so many patches, as many of each image (or one of each of so many images), seen as inference sees them.

    A patch has the label of most of its pixels; one without a labelled pixel is not drawn.
    """
    device, windows = how.world.device, how.windows
    samples = np.sort(numpy_generator(seed, "bank").permutation(len(reader))[:patches])
    each = patches // len(samples)
    rows: list[tuple[Tensor, ...]] = []
    loaded = batches(reader, samples, WholeImage(windows.short_side), batch_size=1, workers=how.workers)
    for index, sample in zip(samples.tolist(), loaded, strict=True):
        how.heed()
        image, mask = sample["image"][0], sample["mask"][0].numpy()
        mask = crop_part_map(mask, WHOLE, (image.shape[1], image.shape[2]))
        tokens, labels = [], []
        for y in starts(image.shape[1], windows.side, windows.stride):
            for x in starts(image.shape[2], windows.side, windows.stride):
                here = np.s_[y : y + windows.side, x : x + windows.side]
                found = encode(image[:, *here][None].to(device))[0]
                counts = cell_counts(
                    mask[here], grid=(found.shape[1], found.shape[2]), num_classes=len(reader.mask_names)
                )
                tokens.append(found.flatten(1).T)
                labels.append(np.where(counts.any(1), counts.argmax(1), IGNORE))
        label = np.concatenate(labels)
        known = np.flatnonzero(label != IGNORE)
        chosen = numpy_generator(seed, "patches", reader.keys[index]).permutation(known)[:each]
        rows.append((torch.cat(tokens)[chosen], torch.from_numpy(label[chosen]), torch.full((len(chosen),), index)))
    return Bank(*(torch.cat(column).to(device) for column in zip(*rows, strict=True)))


@torch.inference_mode()
def knn(recipe: Knn, encode: Encode, train: Train, *, how: Inference, seed: int) -> Probe:
    """The vote of the number of neighbours that does best on the held-out samples while they do not vote."""
    voters = bank(encode, train.reader, how, patches=recipe.patches, seed=seed)
    ask: dict[str, Any] = {"num_classes": train.num_classes, "temperature": recipe.temperature}
    best = 0
    if len(recipe.k) > 1:
        best = train.best(voters.without(train.held_out).predict(encode, ks=recipe.k, **ask), how)
    return Probe(voters.predict(encode, ks=[recipe.k[best]], **ask), {"k": recipe.k[best]}, [])


def _loss_and_gradient(
    logits: Float[Tensor, "b c h w"], mask: UInt8[Tensor, "b H W"]
) -> tuple[Float[Tensor, ""], Float[Tensor, "b c h w"]]:
    """The loss of one head and its gradient at the patches, so that one head's pixels are in memory at a time."""
    leaf = logits.detach().requires_grad_()
    loss = pixel_loss(leaf, mask)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient
