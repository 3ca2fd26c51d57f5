"""Scores of an encoder during training: RankMe, kNN on labels, and a linear probe of patch tokens on masks.

RankMe needs no labels. It is near 1 if the features of all images are alike, so it shows a collapse. The patch probe
is a supervised linear map from patch tokens to foreground. Part methods use the same tokens without supervision, so its
IoU is their practical upper bound.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Integer
from pydantic import NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from semmae.core.config import STRICT
from semmae.core.rng import numpy_generator
from semmae.data.dataset import Reader
from semmae.data.decoding import IGNORE
from semmae.data.loader import batches
from semmae.data.patch_masks import WholeView, majority_labels
from semmae.evaluation import classification_metrics, features, patch_probe, splits
from semmae.evaluation.rankme import rankme
from semmae.models import vit

NEIGHBORS, TEMPERATURE = 20, 0.07  # DINO's kNN
BATCH_SIZE = 64


@dataclass(frozen=True, config=STRICT)
class OnlineEvalConfig:
    """Settings of the scores during training; `num_images` is the number of images of each split."""

    dataset: str
    every_epochs: NonNegativeInt  # 0: no scores during training
    num_images: PositiveInt


class OnlineEvaluator:
    """Scores an encoder on a fixed subset of a dataset.

    A dataset without labels gives no kNN score, and a dataset without masks gives no probe score. In both cases, a
    message is printed once. RankMe needs the images of train only, and every dataset gives it.

    Args:
        config: dataset, interval and number of images.
        folder: the shards of the dataset.
        pool: how the tokens of an image become its feature for kNN.
        img_size: side of the encoder's images.
        device: where the encoder is.
        verbose: whether to print messages.
    """

    def __init__(
        self,
        config: OnlineEvalConfig,
        folder: Path,
        *,
        pool: features.Pool,
        img_size: int,
        device: torch.device,
        verbose: bool,
    ) -> None:
        self.config, self.pool, self.img_size, self.device, self.verbose = config, pool, img_size, device, verbose
        self._labeled = self._load_splits("kNN", splits.open_labeled_splits, folder)
        self._masked = self._load_splits("patch probe", splits.open_masked_splits, folder)
        self._train = self._labeled[0] if self._labeled else self._open_train(folder)

    def after_epoch(self, encoder: vit.Network, epoch: int, is_last: bool) -> dict[str, float]:
        """Score the encoder after the first, the last and every `every_epochs`-th epoch; else return an empty dict.

        Args:
            encoder: the encoder in training.
            epoch: number of completed epochs, from 1.
            is_last: whether this is the last epoch.
        """
        every = self.config.every_epochs
        is_due = every and (epoch == 1 or is_last or epoch % every == 0)
        return self.measure(encoder) if is_due else {}

    def measure(self, encoder: vit.Network) -> dict[str, float]:
        """Score the encoder.

        Returns:
            `rankme` of the features of train, `knn_top1`, the accuracy of kNN, and `readout_iou`, the mean foreground
            IoU of the patch probe.
        """
        training = encoder.training
        encoder.eval()
        scores = {}
        if self._train is not None:
            train_features = self._features(encoder, self._train)
            scores["rankme"] = rankme(train_features)
            if self._labeled is not None:
                scores["knn_top1"] = self._knn_top1(encoder, train_features, *self._labeled)
        if self._masked is not None and (iou := self._probe_iou(encoder, *self._masked)) is not None:
            scores["readout_iou"] = iou
        encoder.train(training)
        return scores

    def _load_splits(
        self, score_name: str, open_splits: Callable[[Path], tuple[Reader, Reader]], folder: Path
    ) -> tuple[Reader, Reader] | None:
        """Return a subset of train and val, or None if the dataset lacks labels or masks for the score."""
        try:
            train, val = open_splits(folder)
        except ValueError as error:
            self._print_skip(score_name, str(error))
            return None
        return _subset(train, self.config.num_images), _subset(val, self.config.num_images)

    def _open_train(self, folder: Path) -> Reader | None:
        """Return a subset of train, or None if the dataset has no such split."""
        try:
            return _subset(Reader(folder, "train"), self.config.num_images)
        except ValueError as error:
            self._print_skip("RankMe", str(error))
            return None

    def _print_skip(self, score_name: str, reason: str) -> None:
        if self.verbose:
            print(f"online_eval: no {score_name} during training: {reason}")

    def _features(self, encoder: vit.Network, reader: Reader) -> Float[Tensor, "n d"]:
        encode = features.build_feature_encoder(encoder, pool=self.pool, device=self.device)
        return features.extract(encode, reader, img_size=self.img_size, batch_size=BATCH_SIZE, workers=0)

    def _knn_top1(
        self, encoder: vit.Network, train_features: Float[Tensor, "n d"], train: Reader, val: Reader
    ) -> float:
        votes = classification_metrics.knn_votes(
            train_features, torch.from_numpy(train.labels), self._features(encoder, val),
            num_classes=train.num_classes, k=NEIGHBORS, temperature=TEMPERATURE, device=self.device,
        )  # fmt: skip
        return classification_metrics.topk_accuracy(votes, torch.from_numpy(val.labels), k=1)

    def _probe_iou(self, encoder: vit.Network, train: Reader, val: Reader) -> float | None:
        """Fit the probe on train and return its mean IoU on val; None if object or background patches are missing."""
        (tokens, truth), (val_tokens, val_truth) = (self._encode_patches(encoder, reader) for reader in (train, val))
        if not ({0, 1} <= set(np.unique(truth)) and (val_truth == 1).any()):
            self._masked = None
            self._print_skip("patch probe", f"{self.config.dataset} lacks object patches or background patches")
            return None
        width = tokens.shape[-1]
        probe = patch_probe.fit(tokens.reshape(-1, width), truth.reshape(-1), num_classes=2)
        predicted = probe.predict(val_tokens.reshape(-1, width)).reshape(val_truth.shape)
        known = val_truth != IGNORE
        intersection = ((predicted == 1) & (val_truth == 1)).sum(1)
        union = (((predicted == 1) | (val_truth == 1)) & known).sum(1)
        has_object = (val_truth == 1).any(1)
        return float((intersection[has_object] / union[has_object]).mean())

    @torch.no_grad()
    def _encode_patches(
        self, encoder: vit.Network, reader: Reader
    ) -> tuple[Float[np.ndarray, "b n d"], Integer[np.ndarray, "b n"]]:
        """Return patch tokens, and for each patch 1 for foreground, 0 for background, 255 for unknown."""
        side = self.img_size // encoder.patch_embed.patch_size[0]
        view = WholeView(self.img_size, (side, side), len(reader.mask_names))
        tokens, truth = [], []
        for batch in batches(reader, np.arange(len(reader)), view, batch_size=BATCH_SIZE, workers=0):
            out = vit.encode_tokens(encoder, vit.normalize(batch["image"].to(self.device)))
            tokens.append(out[:, encoder.num_prefix_tokens :].float().cpu().numpy())
            counts = batch["counts"].numpy()  # pixels per patch and class; class 0 is background
            foreground_counts = np.stack([counts[..., 0], counts[..., 1:].sum(-1)], axis=-1)
            truth.append(majority_labels(foreground_counts))
        return np.concatenate(tokens), np.concatenate(truth)


def _subset(reader: Reader, num_images: int) -> Reader:
    """Return a fixed random subset of a reader's samples."""
    return reader.select(numpy_generator(0, "health").permutation(len(reader))[:num_images])
