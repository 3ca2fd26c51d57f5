"""The fine-tuning loop: it trains an encoder and a classifier end to end, with smaller rates in lower layers.

Random draws do not depend on the draws before them. Crops and RandAugment are functions of (seed, epoch, key), and
mixup is a function of (seed, step). Random erasing and drop path are functions of (seed, step, rank). Mixup mixes
images of the same rank only.
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
from semmae.core.config import STRICT, Below1, Betas, PositiveBelow1, PositiveUpTo1, UpTo1
from semmae.core.rng import fold, seeded
from semmae.data.dataset import Reader
from semmae.data.epoch_order import epoch_size
from semmae.data.loader import batches
from semmae.data.transforms import AugmentedCrop, Crop, RandAugment
from semmae.evaluation import classification_metrics
from semmae.evaluation.views import CenterView
from semmae.models import vit
from semmae.runs.run import Run, Stateful


@dataclass(frozen=True, config=STRICT)
class FinetuneRecipe:
    """Fine-tuning as in MAE (He et al. 2022, table 9); lr = base_lr * batch_size / 256.

    `batch_size` counts the images of all processes. On a dataset with fewer images, an epoch is a single batch.
    """

    epochs: PositiveInt
    batch_size: PositiveInt
    shuffle_shards: PositiveInt | None  # shards that are shuffled together; null: all
    base_lr: PositiveFloat
    min_lr: NonNegativeFloat
    warmup_epochs: NonNegativeInt
    layer_decay: PositiveUpTo1
    weight_decay: NonNegativeFloat
    betas: Betas
    clip_grad: PositiveFloat | None  # maximum norm of the gradient; null: no clipping
    drop_path: Below1
    label_smoothing: Below1
    mixup: NonNegativeFloat  # alpha of the Beta distribution; 0: no mixup
    cutmix: NonNegativeFloat  # as mixup; if both are positive, each step draws one of them
    ema_decay: PositiveBelow1 | None  # decay of a moving average of the weights, which is then scored; null: none
    crop: Crop
    rand_augment: RandAugment | None
    erasing: UpTo1  # probability that a rectangle of an image is replaced by noise


class Validation:
    """The accuracy of a classifier on val. Every rank predicts its share of the images.

    Args:
        img_size: Side of the images in pixels.
        batch_size: Images per batch on each rank.
        every_epochs: Epochs between two measurements; 0: after the last epoch only.

    Attributes:
        last: Class probabilities of val after the last epoch, (n, c); None before.
    """

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
        self.last: Tensor | None = None

    def after_epoch(self, model: VisionTransformer, epoch: int, is_last: bool) -> dict[str, float]:
        """Return `val_top1` if this epoch (counted from 1) is evaluated; otherwise an empty dictionary."""
        if not is_last and not (self.every_epochs and epoch % self.every_epochs == 0):
            return {}
        probabilities = self.predict(model)
        self.last = probabilities if is_last else None
        return {"val_top1": classification_metrics.topk_accuracy(probabilities, self.labels, k=1)}

    @torch.inference_mode()
    def predict(self, model: VisionTransformer) -> Float[Tensor, "n c"]:
        """Compute the class probabilities of the center view of every image, on the CPU of every rank."""
        n, size, training = len(self.reader), self.world.size, model.training
        indices = np.minimum(np.arange(-(-n // size)) * size + self.world.rank, n - 1)  # the same number on every rank
        model.eval()
        probabilities = []
        for batch in batches(self.reader, indices, self.view, batch_size=self.batch_size, workers=self.compute.workers):
            with distributed.autocast(self.world.device, self.compute.precision):
                logits = model(vit.normalize(batch["image"].to(self.world.device)))
            probabilities.append(logits.float().softmax(1))
        model.train(training)
        by_rank = distributed.gather(torch.cat(probabilities), self.world).unflatten(0, (size, -1))
        return by_rank.transpose(0, 1).flatten(0, 1)[:n].cpu()  # [r, i] is sample i * size + r


def finetune(
    recipe: FinetuneRecipe,
    model: VisionTransformer,
    *,
    reader: Reader,
    seed: int,
    compute: ComputeConfig,
    world: distributed.World,
    run: Run,
    validation: Validation,
) -> VisionTransformer:
    """Train `model` in place.

    Returns:
        The model in evaluation mode, or the moving average of its weights if the recipe has `ema_decay`.
    """
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
    scored = model if average is None else average.module
    peak_lr = recipe.base_lr * b / 256

    for step in run.steps(
        reader, view, batch_size=b, epochs=recipe.epochs, seed=seed, workers=compute.workers, state=state
    ):
        warmup = recipe.warmup_epochs * step.per_epoch
        lr = optim.warmup_cosine(step.number, steps=step.steps, warmup=warmup, peak=peak_lr, end=recipe.min_lr)
        pixels, labels = (async_copy.to_device(world.device, step.batch[name]) for name in ("image", "label"))
        images, targets = mix_images(
            recipe, pixels, labels, model.num_classes, seed=seed, step=step.number, rank=world.rank
        )
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
            run.log(**validation.after_epoch(scored, step.epoch + 1, step.ends_run))
    return scored.eval()


def mix_images(
    recipe: FinetuneRecipe,
    pixels: UInt8[Tensor, "b 3 s s"],
    labels: Int64[Tensor, " b"],
    num_classes: int,
    *,
    seed: int,
    step: int,
    rank: int,
) -> tuple[Float[Tensor, "b 3 s s"], Float[Tensor, "b c"]]:
    """Normalize images, apply random erasing, and mix them in pairs by mixup or CutMix.

    Returns:
        The images, and their targets: distributions over classes with label smoothing.
    """
    images, device = vit.normalize(pixels), pixels.device
    if recipe.erasing:
        with seeded(seed, "erasing", step, rank, device=device):
            images = RandomErasing(recipe.erasing, mode="pixel", device=str(device))(images)
    if not mixes_pairs(recipe):
        return images, mixup_target(labels, num_classes, lam=1.0, smoothing=recipe.label_smoothing)
    mix = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.label_smoothing, num_classes=num_classes)
    with seeded(seed, "mixup", step):
        return mix(images, labels)


def mixes_pairs(recipe: FinetuneRecipe) -> bool:
    """Return whether the recipe has mixup or CutMix."""
    return recipe.mixup > 0 or recipe.cutmix > 0


def batch_size(recipe: FinetuneRecipe, num_samples: int, world: distributed.World) -> int:
    """Return the batch size of the recipe, or the largest one that `num_samples` can fill.

    Raises:
        ValueError: The batch size is not a multiple of the number of processes. With mixup or CutMix, it is not a
            multiple of twice this number. Or there are too few samples.
    """
    unit = world.size * (2 if mixes_pairs(recipe) else 1)
    if recipe.batch_size % unit:
        pairs = ", and pairs for mixup" if mixes_pairs(recipe) else ""
        remedy = "Change it, or set mixup and cutmix to 0" if mixes_pairs(recipe) else "Change it"
        raise ValueError(
            f"finetune: recipe.batch_size is {recipe.batch_size}; expected a multiple of {unit}, "
            f"for {world.size} process(es){pairs}. {remedy}"
        )
    if num_samples < unit:
        raise ValueError(
            f"finetune: there are {num_samples} training sample(s); expected at least {unit} for this recipe"
        )
    return min(recipe.batch_size, num_samples // unit * unit)
