"""The training loop of attentive probes. The heads of several frozen networks are trained on the same crops."""

from functools import partial
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float, Integer, UInt8
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from semmae.core import async_copy, distributed, optim
from semmae.core.compute import ComputeConfig
from semmae.core.config import STRICT, Betas, PositiveBelow1
from semmae.data.dataset import Reader
from semmae.evaluation import attentive_heads, features, subsets
from semmae.evaluation.views import RandomViews
from semmae.runs.run import Run, Stateful


@dataclass(frozen=True, config=STRICT)
class AttentiveRecipe:
    """Settings of the training of heads; lr = base_lr * batch_size / 256."""

    queries: PositiveInt  # per head; must divide the width of a token
    base_lrs: Annotated[list[PositiveFloat], Field(min_length=1)]
    weight_decays: Annotated[list[NonNegativeFloat], Field(min_length=1)]
    holdout: PositiveBelow1  # share of train that is held out to choose the head
    epochs: PositiveInt
    warmup_epochs: NonNegativeInt
    batch_size: PositiveInt  # over all processes
    shuffle_shards: PositiveInt | None  # shards that are shuffled together; null: all
    betas: Betas
    seed: int


class AttentiveProbe:
    """A frozen network, and the heads that are trained on its patch tokens.

    Args:
        encode_tokens: Maps images to the class token and the patch tokens of the network.
        img_size: Side of these images in pixels.
    """

    def __init__(
        self,
        encode_tokens: features.TokenEncoder,
        img_size: int,
        *,
        num_classes: int,
        recipe: AttentiveRecipe,
        compute: ComputeConfig,
        world: distributed.World,
    ) -> None:
        self.encode_tokens, self.img_size, self.world = encode_tokens, img_size, world
        self.precision = compute.precision
        width = encode_tokens(torch.zeros(1, 3, img_size, img_size, dtype=torch.uint8))[1].shape[2]
        self.settings = attentive_heads.grid(recipe.base_lrs, recipe.weight_decays)
        self.heads = attentive_heads.AttentiveHeads(
            width, num_classes, num_heads=len(self.settings), queries=recipe.queries, seed=recipe.seed
        ).to(world.device)
        compute.compile_in_place(self.heads)
        self.parallel = distributed.parallel(self.heads, world)
        self.optimizer = attentive_heads.build_optimizer(self.heads, self.settings, betas=recipe.betas)
        self.curves = attentive_heads.HeadCurves(len(self.settings), world.device)
        self._extract = partial(
            features.extract, img_size=img_size, batch_size=recipe.batch_size, workers=compute.workers
        )

    @property
    def state(self) -> dict[str, Stateful]:
        """The objects whose state a checkpoint stores."""
        return {"heads": self.heads, "optimizer": self.optimizer, "curves": self.curves}

    @property
    def best_setting(self) -> dict[str, float]:
        """The learning rate and the weight decay of the best head."""
        return self.settings[self.curves.best]

    def step(self, images: UInt8[Tensor, "b 3 s s"], labels: Integer[Tensor, " b"]) -> Float[Tensor, " l"]:
        """Update every head, and return the losses before the update.

        Heads share no parameters, so a head that diverges does not affect the others.
        """
        _, tokens = self.encode_tokens(images)
        with distributed.autocast(self.world.device, self.precision):
            logits = self.parallel.train()(tokens)
        losses = attentive_heads.cross_entropy(logits, labels)
        self.optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()
        self.optimizer.step()
        return losses.detach()

    def predict(self, images: UInt8[Tensor, "b 3 s s"]) -> Float[Tensor, "b l c"]:
        """Compute the logits of every head."""
        _, tokens = self.encode_tokens(images)
        with distributed.autocast(self.world.device, self.precision):
            return self.heads.eval()(tokens).float()

    def top1(self, reader: Reader) -> list[float]:
        """Compute the accuracy of every head on the samples of a reader."""
        predicted = self._extract(lambda images: self.predict(images).argmax(2).float(), reader)
        return (predicted == torch.from_numpy(reader.labels)[:, None]).double().mean(0).tolist()

    def predict_all(self, reader: Reader, run: Run) -> Float[Tensor, "n c"]:
        """Compute the logits of the best head for all samples of a reader; exit between batches if stopped."""

        def predict_best(images: UInt8[Tensor, "b 3 s s"]) -> Float[Tensor, "b c"]:
            run.exit_if_stopped()
            return self.predict(images)[:, self.curves.best]

        return self._extract(predict_best, reader)


def train_probes(
    probes: dict[str, AttentiveProbe],
    train: Reader,
    recipe: AttentiveRecipe,
    *,
    compute: ComputeConfig,
    world: distributed.World,
    run: Run,
) -> None:
    """Train the heads of all probes on the same crops, and measure them on a hold-out of train after each epoch."""
    held_out = subsets.stratified_split(train.labels, share=recipe.holdout, seed=recipe.seed)
    kept, holdout = train.select(np.setdiff1d(np.arange(len(train)), held_out)), train.select(held_out)
    kept = kept.with_shuffle_shards(recipe.shuffle_shards)
    views = RandomViews(tuple({probe.img_size for probe in probes.values()}), recipe.seed)
    state = {f"{name} {key}": value for name, probe in probes.items() for key, value in probe.state.items()}

    for step in run.steps(
        kept,
        views,
        batch_size=recipe.batch_size,
        epochs=recipe.epochs,
        seed=recipe.seed,
        workers=compute.workers,
        state=state,
    ):
        warmup = recipe.warmup_epochs * step.per_epoch
        schedule = optim.warmup_cosine(step.number, steps=step.steps, warmup=warmup, peak=1.0, end=0.0)
        labels, total = async_copy.to_device(world.device, step.batch["label"]), torch.zeros((), device=world.device)
        for name, probe in probes.items():
            rates = attentive_heads.set_rates(probe.optimizer, batch_size=recipe.batch_size, schedule=schedule)
            losses = distributed.mean(probe.step(step.batch[f"image{probe.img_size}"], labels), world)
            probe.curves.add_losses(losses)
            total += losses.where(losses.isfinite(), torch.nan).nanmean()  # nan if every head has diverged
            if step.ends_epoch:
                probe.curves.end_epoch(lr=rates, holdout_top1=probe.top1(holdout))
                run.log(**{f"{name}_holdout_top1": max(probe.curves.rows[-1]["holdout_top1"])})
        run.record(loss=total / len(probes))
