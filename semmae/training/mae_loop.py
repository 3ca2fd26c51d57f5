"""The training loop of MAE, used by the stage pretrain with any mask strategy and by the stage teacher.

Crops depend on (seed, epoch, key) and mask noise on (seed, step), not on earlier draws. A resumed run therefore draws
the same crops and masks as an uninterrupted one. Noise is drawn for the global batch, and each rank uses its own rows,
so the number of processes does not change the masks.
"""

import math
from collections.abc import Callable
from typing import Literal, Self

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from pydantic.dataclasses import dataclass
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from semmae.core import async_copy, distributed, optim
from semmae.core.compute import ComputeConfig
from semmae.core.config import STRICT, Betas, PositiveBelow1, PositiveUpTo1, UpTo1
from semmae.core.rng import fold, torch_generator
from semmae.data.dataset import Reader
from semmae.data.transforms import Crop, OneCrop
from semmae.models import mae, masking, vit
from semmae.parts.part_maps import PartMaps
from semmae.runs.run import Run
from semmae.runs.steps import Step, steps_per_epoch
from semmae.runs.training_length import TrainingLength
from semmae.training.progressive_resolution import ResolutionConfig, epoch_sizes


@dataclass(frozen=True, config=STRICT)
class ViTConfig:
    """Shape of a ViT, without the image size."""

    patch_size: PositiveInt
    embed_dim: PositiveInt
    depth: PositiveInt
    num_heads: PositiveInt


@dataclass(frozen=True, config=STRICT)
class DecoderConfig:
    """Shape of the decoder, which is narrower and shallower than the encoder."""

    embed_dim: PositiveInt
    depth: PositiveInt
    num_heads: PositiveInt

    @model_validator(mode="after")
    def _check_embed_dim(self) -> Self:
        if self.embed_dim % (4 * self.num_heads):
            raise ValueError(
                f"embed_dim is {self.embed_dim}; it must be a multiple of 4 * num_heads, {4 * self.num_heads}"
            )
        return self


@dataclass(frozen=True, config=STRICT)
class MAERecipe(TrainingLength):
    """Hyperparameters of MAE. The peak learning rate is base_lr * batch_size / 256."""

    batch_size: PositiveInt
    shuffle_shards: PositiveInt | None  # shards that are shuffled together; null: all
    base_lr: NonNegativeFloat
    min_lr: NonNegativeFloat
    warmup_epochs: NonNegativeInt
    weight_decay: NonNegativeFloat
    betas: Betas
    clip_grad: PositiveFloat | None  # largest norm of the gradient; null: no clipping
    max_skipped_steps: NonNegativeInt  # how many steps with non-finite values a run may skip
    norm_pix_loss: bool
    decode_fraction: PositiveUpTo1  # share of the masked patches to decode; each step draws them anew
    decoder: DecoderConfig
    crop: Crop
    resolution: ResolutionConfig | None  # smaller images in the first epochs; null: full size in all epochs


@dataclass(frozen=True, config=STRICT)
class CurriculumConfig:
    """Curriculum of the semantic strategy: start + (end - start) * progress ** power."""

    start: UpTo1
    end: UpTo1
    power: PositiveFloat


@dataclass(frozen=True, config=STRICT)
class MaskingConfig:
    """Selection of the masked patches. Only strategies with the input `curriculum_weight` use `curriculum`."""

    strategy: Literal[*masking.STRATEGIES]  # type: ignore[valid-type]  # mypy rejects computed literals
    mask_ratio: PositiveBelow1
    curriculum: CurriculumConfig


def count_masked_and_decoded(num_patches: int, mask_ratio: float, decode_fraction: float) -> tuple[int, int]:
    """Return how many patches of an image are masked, and how many of the masked patches are decoded.

    Raises:
        ValueError: no patch is left visible.
    """
    num_masked = masking.num_masked(num_patches, mask_ratio)
    if num_masked == num_patches:
        raise ValueError(f"mask_ratio is {mask_ratio}, which masks all of the {num_patches} patches; lower it")
    return num_masked, max(1, round(decode_fraction * num_masked))


class StepMasks:
    """Draws the masks of every step, on this rank's device.

    Args:
        config: strategy, mask ratio and curriculum.
        maps: the part maps of all samples; None if the strategy uses none.
        batch_size: number of images of the global batch.
        seed: seed of the run; the seed and the step number determine the noise.
        world: rank, number of ranks and device.

    Raises:
        ValueError: the part maps lack a channel that the strategy uses.
    """

    def __init__(
        self, config: MaskingConfig, maps: PartMaps | None, *, batch_size: int, seed: int, world: distributed.World
    ) -> None:
        self.config, self.strategy = config, masking.STRATEGIES[config.strategy]
        self.maps, self.batch_size, self.seed, self.world = maps, batch_size, seed, world
        available = maps.channels if maps else {}
        if missing := [channel for channel in self.strategy.channels if channel not in available]:
            raise ValueError(
                f"masking.strategy is {config.strategy}, which uses {' and '.join(missing)}, but the part maps hold "
                f"{' and '.join(available) or 'nothing'}; change part_maps in params.yaml, then run dvc repro part_maps"
            )

    def draw(self, step: Step, grid: tuple[int, int], curriculum_weight: float) -> masking.Mask:
        """Draw the masked patches of this rank's images, on a grid of (rows, columns) patches."""
        generator = torch_generator(self.seed, "mask", step.number)
        noise = self.strategy.draw(self.batch_size, grid, generator=generator)
        channels = {}
        if self.maps:
            rows, spans = step.batch["index"], step.batch["span"]
            channels = {
                name: self._to_device(self.maps.crops(name, rows, spans, grid)) for name in self.strategy.channels
            }
        return self.strategy(
            self._to_device(self.world.slice(noise)), self.config.mask_ratio, grid=grid,
            curriculum_weight=torch.tensor(curriculum_weight), **channels,
        )  # fmt: skip

    def draw_decoded(self, step: Step, mask: masking.Mask, num_decode: int) -> masking.Mask:
        """Draw `num_decode` of the masked patches of every image, uniformly at random."""
        generator = torch_generator(self.seed, "reconstruct", step.number)
        noise = torch.rand(self.batch_size, mask.shape[1], generator=generator)
        return masking.subsample_mask(mask, self._to_device(self.world.slice(noise)), num_decode)

    def _to_device(self, tensor: Tensor) -> Tensor:
        return async_copy.to_device(self.world.device, tensor)


def pretrain(
    recipe: MAERecipe,
    masking_config: MaskingConfig,
    encoder: VisionTransformer,
    *,
    reader: Reader,
    maps: PartMaps | None,
    seed: int,
    compute: ComputeConfig,
    world: distributed.World,
    run: Run,
    online_eval: Callable[[VisionTransformer, int, bool], dict[str, float]],
) -> mae.MAE:
    """Train an encoder in place.

    Args:
        recipe: hyperparameters.
        masking_config: strategy, mask ratio and curriculum.
        encoder: the ViT to train.
        reader: the samples to train on.
        maps: the part maps of these samples; None if the mask strategy uses none.
        seed: seed of decoder weights, data order, crops and masks.
        compute: device settings.
        world: rank, number of ranks and device.
        run: checkpoints and history.
        online_eval: called as `online_eval(encoder, epoch, is_last)` after each epoch; its scores go to the history.

    Returns:
        The autoencoder, in evaluation mode.

    Raises:
        ValueError: the part maps lack a channel that the strategy uses, `recipe.resolution` is invalid, or the mask
            ratio leaves no patch visible.
    """
    (img_size, _), (patch_size, _) = encoder.patch_embed.img_size, encoder.patch_embed.patch_size
    epochs = recipe.num_epochs(steps_per_epoch(run.stage, reader, recipe.batch_size))
    sizes = epoch_sizes(recipe.resolution, img_size=img_size, epochs=epochs, patch_size=patch_size)
    grids = [(size // patch_size, size // patch_size) for size in sizes]
    patch_counts = {
        grid: count_masked_and_decoded(math.prod(grid), masking_config.mask_ratio, recipe.decode_fraction)
        for grid in set(grids)
    }
    masks = StepMasks(masking_config, maps, batch_size=recipe.batch_size, seed=seed, world=world)
    has_curriculum = "curriculum_weight" in masks.strategy.inputs

    torch.manual_seed(fold(seed, "decoder"))
    model = mae.MAE(encoder, **vars(recipe.decoder)).to(world.device).train()
    vit.use_fastest_attention(model, world.device)
    compute.compile_in_place(model)
    parallel_model = distributed.parallel(model, world)
    optimizer = optim.adamw(model, weight_decay=recipe.weight_decay, betas=recipe.betas)
    peak_lr = recipe.base_lr * recipe.batch_size / 256

    for step in run.steps(
        reader, OneCrop(seed, recipe.crop, sizes), batch_size=recipe.batch_size, epochs=recipe.epochs,
        steps=recipe.steps, seed=seed, workers=compute.workers, state={"model": model, "optimizer": optimizer},
        retry=compute.precision != "fp32", max_skipped_steps=recipe.max_skipped_steps,
        warn_if_short=True,
    ):  # fmt: skip
        warmup_steps = recipe.warmup_epochs * step.per_epoch
        lr = optim.warmup_cosine(step.number, steps=step.steps, warmup=warmup_steps, peak=peak_lr, end=recipe.min_lr)
        curriculum_weight = masking.curriculum_weight(step.progress, **vars(masking_config.curriculum))
        grid = grids[step.epoch]
        num_masked, num_decode = patch_counts[grid]

        mask = masks.draw(step, grid, curriculum_weight)
        decode_mask = masks.draw_decoded(step, mask, num_decode) if num_decode < num_masked else None
        images = vit.normalize(async_copy.to_device(world.device, step.batch["image"]))
        with distributed.autocast(world.device, "fp32" if step.is_retry else compute.precision):
            pred = parallel_model(images, mask, num_masked, decode_mask, num_decode)
        loss_mask = mask if decode_mask is None else decode_mask
        loss = mae.loss(pred, images, loss_mask, patch_size=patch_size, norm_pix_loss=recipe.norm_pix_loss)

        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        grad_norm = optim.clip(model, recipe.clip_grad)  # before clipping
        finite = run.all_finite(loss=loss, gradient=grad_norm)
        optim.set_rate(optimizer, lr)
        optim.step_if(finite, optimizer)

        curriculum = {"curriculum_weight": curriculum_weight} if has_curriculum else {}
        run.record(loss=loss, lr=lr, grad_norm=grad_norm, **curriculum)
        if step.ends_epoch:
            run.log(**online_eval(encoder, step.epoch + 1, step.ends_run))
    return model.eval()
