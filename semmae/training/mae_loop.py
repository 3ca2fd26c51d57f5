"""The MAE training loop, with any mask strategy: the pretrain stage's, and the teacher stage's plain bootstrap.

What a step takes is drawn by name: crops from (seed, epoch, key), mask noise from (seed, step) for the global batch,
of which each rank takes its rows. So a resumed run repeats the one that was killed, and two ranks see what one would.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, Self

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from pydantic.dataclasses import dataclass
from timm.models.vision_transformer import VisionTransformer

from semmae.core import async_copy, distributed, optim
from semmae.core.compute import ComputeConfig
from semmae.core.config import STRICT, Betas, Portion, Share, UpTo1
from semmae.core.rng import fold, torch_generator
from semmae.data.dataset import Reader
from semmae.data.transforms import Crop, OneCrop
from semmae.models import mae, masking, vit
from semmae.parts.part_maps import PartMaps
from semmae.runs.run import Run
from semmae.training.progressive_resolution import ResolutionConfig, epoch_sizes


@dataclass(frozen=True, config=STRICT)
class ViTConfig:
    """A ViT's shape, but for the size of its images."""

    patch_size: PositiveInt
    embed_dim: PositiveInt
    depth: PositiveInt
    num_heads: PositiveInt


@dataclass(frozen=True, config=STRICT)
class DecoderConfig:
    """The decoder's shape: narrow and shallow."""

    embed_dim: PositiveInt
    depth: PositiveInt
    num_heads: PositiveInt

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.embed_dim % (4 * self.num_heads):
            raise ValueError("embed_dim must be a multiple of 4 * num_heads")
        return self


@dataclass(frozen=True, config=STRICT)
class MAERecipe:
    """How long and how fast; `lr = base_lr * batch_size / 256`, batch_size over all processes."""

    epochs: PositiveInt
    batch_size: PositiveInt
    shuffle_shards: PositiveInt | None  # shards whose samples are mixed at a time; null: all
    base_lr: NonNegativeFloat
    min_lr: NonNegativeFloat
    warmup_epochs: NonNegativeInt
    weight_decay: NonNegativeFloat
    betas: Betas
    clip_grad: PositiveFloat | None  # largest norm of the gradient
    max_skipped_steps: NonNegativeInt  # steps that may be left out because their loss is not finite
    norm_pix_loss: bool
    decode_fraction: Portion  # share of the masked patches that is decoded, drawn per step; the others cost nothing
    decoder: DecoderConfig
    crop: Crop
    resolution: ResolutionConfig | None  # of smaller images at first


@dataclass(frozen=True, config=STRICT)
class CurriculumConfig:
    """Weight of the inter-part rule: start + (end - start) * progress ** power."""

    start: UpTo1
    end: UpTo1
    power: PositiveFloat


@dataclass(frozen=True, config=STRICT)
class MaskingConfig:
    """Which patches go; `curriculum` matters to the semantic strategy alone."""

    strategy: Literal["random", "block", "green_noise", "attention", "semantic"]
    mask_ratio: Share
    curriculum: CurriculumConfig


def patch_budget(patches: int, mask_ratio: float, decode_fraction: float) -> tuple[int, int]:
    """How many of an image's patches are masked, and how many of those are decoded; ValueError if no patch is left."""
    num_masked = masking.num_masked(patches, mask_ratio)
    if num_masked == patches:
        raise ValueError(f"mask_ratio is {mask_ratio}, which leaves none of {patches} patches; lower it")
    return num_masked, max(1, round(decode_fraction * num_masked))


def pretrain(
    recipe: MAERecipe, masks: MaskingConfig, encoder: VisionTransformer, *, reader: Reader, maps: PartMaps | None, seed: int,
    compute: ComputeConfig, world: distributed.World, run: Run,
    measure: Callable[[VisionTransformer, int, bool], dict[str, float]],
) -> mae.MAE:  # fmt: skip
    """Train `encoder` in place and return it with its decoder; `measure(encoder, epoch, last)` adds to an epoch's
    history.
    """
    strategy, (full, _) = masking.STRATEGIES[masks.strategy], encoder.patch_embed.img_size
    (patch_size, _), b = encoder.patch_embed.patch_size, recipe.batch_size
    sizes = epoch_sizes(recipe.resolution, img_size=full, epochs=recipe.epochs, patch_size=patch_size)
    budgets = {
        size: patch_budget((size // patch_size) ** 2, masks.mask_ratio, recipe.decode_fraction) for size in set(sizes)
    }
    evidence = next((name for name in ("part_map", "attention") if name in strategy.inputs), None)
    if evidence and (maps is None or evidence not in maps.channels):
        raise ValueError(f"masking.strategy is {masks.strategy}, but the part maps hold no {evidence}; see part_maps")
    crops = OneCrop(seed, recipe.crop, sizes)

    torch.manual_seed(fold(seed, "decoder"))
    model = mae.MAE(encoder, **vars(recipe.decoder)).to(world.device).train()
    vit.use_fastest_attention(model, world.device)
    compute.compile_in_place(model)
    parallel = distributed.parallel(model, world)
    optimizer = optim.adamw(model, weight_decay=recipe.weight_decay, betas=recipe.betas)
    rate, onto = recipe.base_lr * b / 256, partial(async_copy.to_device, world.device)

    for step in run.steps(
        reader, crops, batch_size=b, epochs=recipe.epochs, seed=seed, workers=compute.workers,
        state={"model": model, "optimizer": optimizer},
        retry=compute.precision != "fp32", max_skipped_steps=recipe.max_skipped_steps,
    ):  # fmt: skip
        warmup = recipe.warmup_epochs * step.per_epoch
        lr = optim.warmup_cosine(step.number, steps=step.steps, warmup=warmup, peak=rate, end=recipe.min_lr)
        curriculum_weight = masking.curriculum_weight(step.progress, **vars(masks.curriculum))
        side, (num_masked, num_decoded) = sizes[step.epoch] // patch_size, budgets[sizes[step.epoch]]
        grid = (side, side)
        noise = strategy.draw(b, grid, generator=torch_generator(seed, "mask", step.number))
        seen = {}
        if maps and evidence:
            seen[evidence] = onto(maps.crops(evidence, step.batch["index"], step.batch["span"], grid))
        mask = strategy(
            onto(world.slice(noise)),
            masks.mask_ratio,
            grid=grid,
            curriculum_weight=torch.tensor(curriculum_weight),
            **seen,
        )
        decoded = None
        if num_decoded < num_masked:
            noise = torch.rand(b, mask.shape[1], generator=torch_generator(seed, "reconstruct", step.number))
            decoded = masking.subsample_mask(mask, onto(world.slice(noise)), num_decoded)
        images = vit.normalize(onto(step.batch["image"]))
        with distributed.autocast(world.device, "fp32" if step.is_retry else compute.precision):  # what bf16 cannot say
            pred = parallel(images, mask, num_masked, decoded, num_decoded)
        scored = mask if decoded is None else decoded
        loss = mae.loss(pred, images, scored, patch_size=model.patch_size, norm_pix_loss=recipe.norm_pix_loss)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        finite = run.all_finite(loss=loss, gradient=optim.clip(model, recipe.clip_grad))
        optim.set_rate(optimizer, lr)
        optim.step_if(finite, optimizer)
        hardness = {"curriculum_weight": curriculum_weight} if "curriculum_weight" in strategy.inputs else {}
        run.record(loss=loss, lr=lr, **hardness)
        if step.ends_epoch:
            run.log(**measure(encoder, step.epoch + 1, step.ends_run))
    return model.eval()
