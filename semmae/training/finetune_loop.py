"""The fine-tuning loop: every layer of a pretrained encoder learns to classify, the lower ones more slowly.

What a step takes is drawn by name: crops and RandAugment from (seed, epoch, key), mixup from (seed, step), erased
rectangles and dropped paths from (seed, step, rank). Pairs are mixed within a rank's share of the batch.
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from timm.data import Mixup
from timm.data.mixup import mixup_target
from timm.data.random_erasing import RandomErasing
from timm.models.vision_transformer import VisionTransformer
from timm.utils import ModelEmaV3
from torch import Tensor

from semmae.core import async_copy, distributed, optim
from semmae.core.compute import ComputeConfig
from semmae.core.config import STRICT, Below1, Betas, Portion, Share, UpTo1
from semmae.core.rng import fold, seeded
from semmae.data.dataset import Reader
from semmae.data.epoch_order import epoch_size
from semmae.data.loader import batches
from semmae.data.transforms import AugmentedCrop, Crop, RandAugment
from semmae.evaluation import classification_metrics
from semmae.evaluation.features import CenterView
from semmae.models import vit
from semmae.runs.run import Run, Stateful


@dataclass(frozen=True, config=STRICT)
class FinetuneRecipe:
    """MAE's fine-tuning (He et al. 2022, table 9); `lr = base_lr * batch_size / 256`, batch_size over all processes.

    On fewer samples than a batch holds, a batch is what there is.
    """

    epochs: PositiveInt
    batch_size: PositiveInt
    shuffle_shards: PositiveInt | None  # shards whose samples are mixed at a time; null: all
    base_lr: PositiveFloat
    min_lr: NonNegativeFloat
    warmup_epochs: NonNegativeInt
    layer_decay: Portion
    weight_decay: NonNegativeFloat
    betas: Betas
    clip_grad: PositiveFloat | None  # largest norm of the gradient
    drop_path: Below1
    label_smoothing: Below1
    mixup: NonNegativeFloat  # alpha of the Beta distribution; 0: never
    cutmix: NonNegativeFloat  # likewise; with both, one of them by chance in every step
    ema_decay: Share | None  # of a moving average of the weights, scored in their place
    crop: Crop
    rand_augment: RandAugment | None
    erasing: UpTo1  # probability that a rectangle of an image becomes noise


class Validation:
    """What a model says of val, all ranks together; each encodes its share, and memory holds the scores alone."""

    def __init__(
        self,
        reader: Reader,
        *,
        img_size: int,
        batch_size: int,
        every_epochs: int,
        compute: ComputeConfig,
        world: distributed.World,
    ) -> None:
        self.reader, self.every_epochs, self.compute, self.world = reader, every_epochs, compute, world
        self.view, self.batch_size = CenterView(img_size), batch_size
        self.labels = torch.from_numpy(reader.labels)
        self.last: Tensor | None = None  # scores after the last epoch

    def after_epoch(self, model: VisionTransformer, epoch: int, last: bool) -> dict[str, float]:
        """`val_top1` after the last epoch and every `every_epochs`-th (0: the last alone), counted from 1."""
        if not last and not (self.every_epochs and epoch % self.every_epochs == 0):
            return {}
        scores = self.scores(model)
        self.last = scores if last else None
        return {"val_top1": classification_metrics.topk_accuracy(scores, self.labels, k=1)}

    @torch.inference_mode()
    def scores(self, model: VisionTransformer) -> Float[Tensor, "n c"]:
        """The softmax of the model's logits for the center of every image, on the CPU of every rank."""
        n, size, training = len(self.reader), self.world.size, model.training
        mine = np.minimum(np.arange(-(-n // size)) * size + self.world.rank, n - 1)  # equally many on every rank
        model.eval()
        found = []
        for batch in batches(self.reader, mine, self.view, batch_size=self.batch_size, workers=self.compute.workers):
            with distributed.autocast(self.world.device, self.compute.precision):
                logits = model(vit.normalize(batch["image"].to(self.world.device)))
            found.append(logits.float().softmax(1))
        model.train(training)
        by_rank = distributed.gather(torch.cat(found), self.world).unflatten(
            0, (size, -1)
        )  # [r, i] is sample i * size + r
        return by_rank.transpose(0, 1).flatten(0, 1)[:n].cpu()


def finetune(
    recipe: FinetuneRecipe, model: VisionTransformer, *, reader: Reader, seed: int, compute: ComputeConfig, world: distributed.World,
    run: Run, validation: Validation,
) -> VisionTransformer:  # fmt: skip
    """Train `model` in place and return it, or the moving average of its weights if the recipe asks for one."""
    b, (size, _) = batch_size(recipe, epoch_size(len(reader), reader.weights), world), model.patch_embed.img_size
    view = AugmentedCrop(seed, recipe.crop, recipe.rand_augment, size)
    model = model.to(world.device).train()
    vit.use_fastest_attention(model, world.device)
    average = None if recipe.ema_decay is None else ModelEmaV3(model, decay=recipe.ema_decay)
    compute.compile_in_place(model)
    parallel = distributed.parallel(model, world)
    optimizer = optim.layer_decayed_adamw(
        model, weight_decay=recipe.weight_decay, layer_decay=recipe.layer_decay, betas=recipe.betas
    )
    state: dict[str, Stateful] = {"model": model, "optimizer": optimizer}
    if average is not None:
        state["average"] = average
    learned = model if average is None else average.module
    rate = recipe.base_lr * b / 256

    for step in run.steps(
        reader, view, batch_size=b, epochs=recipe.epochs, seed=seed, workers=compute.workers,
        state=state,
    ):  # fmt: skip
        warmup = recipe.warmup_epochs * step.per_epoch
        lr = optim.warmup_cosine(step.number, steps=step.steps, warmup=warmup, peak=rate, end=recipe.min_lr)
        pixels, labels = (async_copy.to_device(world.device, step.batch[name]) for name in ("image", "label"))
        images, targets = mixed(recipe, pixels, labels, model.num_classes, seed=seed, step=step.number, rank=world.rank)
        torch.manual_seed(fold(seed, "drop path", step.number, world.rank))
        with distributed.autocast(world.device, compute.precision):
            logits = parallel(images)
        loss = F.cross_entropy(logits.float(), targets)
        optim.set_rate(optimizer, lr)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if recipe.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_grad)
        optimizer.step()
        if average is not None:
            average.update(model)
        run.record(loss=loss, lr=lr)
        if step.ends_epoch:
            run.log(**validation.after_epoch(learned, step.epoch + 1, step.ends_run))
    return learned.eval()


def mixed(
    recipe: FinetuneRecipe, pixels: UInt8[Tensor, "b 3 s s"], labels: Int64[Tensor, " b"], num_classes: int,
    *, seed: int, step: int, rank: int,
) -> tuple[Float[Tensor, "b 3 s s"], Float[Tensor, "b c"]]:  # fmt: skip
    """Normalized images, erased and mixed in pairs as the recipe says; their targets are distributions over classes."""
    images, device = vit.normalize(pixels), pixels.device
    if recipe.erasing:
        with seeded(seed, "erasing", step, rank, device=device):
            images = RandomErasing(recipe.erasing, mode="pixel", device=str(device))(images)
    if not mixes(recipe):
        return images, mixup_target(labels, num_classes, lam=1.0, smoothing=recipe.label_smoothing)
    mix = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.label_smoothing, num_classes=num_classes)
    with seeded(seed, "mixup", step):
        return mix(images, labels)


def mixes(recipe: FinetuneRecipe) -> bool:
    """Whether images are mixed in pairs."""
    return recipe.mixup > 0 or recipe.cutmix > 0


def batch_size(recipe: FinetuneRecipe, samples: int, world: distributed.World) -> int:
    """The recipe's, or as much of it as `samples` fill; ValueError where processes or pairs cannot share it evenly."""
    unit = world.size * (2 if mixes(recipe) else 1)
    if recipe.batch_size % unit:
        pairs = " and mixup needs pairs in each; change it, or set mixup and cutmix to 0" if mixes(recipe) else ""
        raise ValueError(
            f"finetune's recipe.batch_size is {recipe.batch_size}; {world.size} process(es) share it evenly{pairs}"
        )
    if samples < unit:
        raise ValueError(f"finetune: {samples} sample(s) to learn from; this recipe needs at least {unit}")
    return min(recipe.batch_size, samples // unit * unit)
