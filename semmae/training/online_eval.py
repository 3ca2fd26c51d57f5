"""How good tokens are while they are learned: kNN where there are labels, a supervised read-out where there are masks.

The read-out is a linear map from patch tokens to the true foreground: the ceiling of any part method on these tokens.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

from semmae.core.config import STRICT
from semmae.core.rng import numpy_generator
from semmae.data.dataset import Reader
from semmae.data.loader import batches
from semmae.evaluation import classification_metrics, features, part_metrics, patch_probe
from semmae.models import vit

Find = Callable[[Path], tuple[Reader, Reader]]
NEIGHBORS, TEMPERATURE = 20, 0.07  # of DINO's kNN


@dataclass(frozen=True, config=STRICT)
class OnlineEvalConfig:
    """Where tokens are measured, how often (0: never while training), on how many samples of train and of val."""

    dataset: str
    every_epochs: NonNegativeInt
    num_images: PositiveInt


class OnlineEvaluator:
    """Measures an encoder of one size; what a data set lacks for a measure is said once, in words."""

    def __init__(
        self,
        config: OnlineEvalConfig,
        folder: Path,
        *,
        pool: features.Pool,
        img_size: int,
        device: torch.device,
        shown: bool,
    ) -> None:
        self.config, self.pool, self.img_size, self.device, self.shown = config, pool, img_size, device, shown
        self.labeled = self._splits(features.labeled_splits, folder, "kNN")
        self.masked = self._splits(features.masked_splits, folder, "patch read-out")

    def _splits(self, find: Find, folder: Path, what: str) -> tuple[Reader, Reader] | None:
        try:
            train, val = find(folder)
            return _some(train, self.config.num_images), _some(val, self.config.num_images)
        except ValueError as error:
            if self.shown:
                print(f"no {what} while training: {error}")
            return None

    def after_epoch(self, encoder: vit.Network, epoch: int, last: bool) -> dict[str, float]:
        """`measure` after the first, the last and every `every_epochs`-th epoch (0: never), counted from 1."""
        every = self.config.every_epochs
        due = every and (epoch == 1 or last or epoch % every == 0)
        return self.measure(encoder) if due else {}

    def measure(self, encoder: vit.Network) -> dict[str, float]:
        """`knn_top1`, and `readout_iou`: the mean foreground IoU of a supervised read-out, by patches."""
        training = encoder.training
        encoder.eval()
        found = {}
        if self.labeled is not None:
            found["knn_top1"] = self._knn(encoder, *self.labeled)
        if self.masked is not None and (iou := self._readout(encoder, *self.masked)) is not None:
            found["readout_iou"] = iou
        encoder.train(training)
        return found

    def _knn(self, encoder: vit.Network, train: Reader, val: Reader) -> float:
        encode = features.pooled(encoder, pool=self.pool, device=self.device)
        train_features, val_features = (
            features.extract(encode, reader, img_size=self.img_size, batch_size=64, workers=0)
            for reader in (train, val)
        )
        votes = classification_metrics.knn_votes(
            train_features, torch.from_numpy(train.labels), val_features,
            num_classes=train.num_classes, k=NEIGHBORS, temperature=TEMPERATURE, device=self.device,
        )  # fmt: skip
        return classification_metrics.topk_accuracy(votes, torch.from_numpy(val.labels), k=1)

    def _readout(self, encoder: vit.Network, train: Reader, val: Reader) -> float | None:
        """None, said once, where objects are so small that no patch is theirs (or all are)."""
        (tokens, truth), (val_tokens, val_truth) = (self._patches(encoder, reader) for reader in (train, val))
        if not ({0, 1} <= set(np.unique(truth)) and (val_truth == 1).any()):
            self.masked = None
            if self.shown:
                print(f"no patch read-out while training: {self.config.dataset} lacks patches of object or background")
            return None
        width = tokens.shape[-1]
        fitted = patch_probe.fit(tokens.reshape(-1, width), truth.reshape(-1), num_classes=2)
        found = fitted.predict(val_tokens.reshape(-1, width)).reshape(val_truth.shape)
        known = val_truth != part_metrics.IGNORE
        both = ((found == 1) & (val_truth == 1)).sum(1)
        either = (((found == 1) | (val_truth == 1)) & known).sum(1)
        shown = (val_truth == 1).any(1)
        return float((both[shown] / either[shown]).mean())

    @torch.no_grad()
    def _patches(self, encoder: vit.Network, reader: Reader) -> tuple[np.ndarray, np.ndarray]:
        """Patch tokens (images, n, d) and whether each patch is foreground (images, n), 255 where unknown."""
        side = self.img_size // encoder.patch_embed.patch_size[0]
        view = features.WholeView(self.img_size, (side, side), len(reader.mask_names))
        tokens, truth = [], []
        for batch in batches(reader, np.arange(len(reader)), view, batch_size=64, workers=0):
            out = vit.encode_tokens(encoder, vit.normalize(batch["image"].to(self.device)))
            tokens.append(out[:, encoder.num_prefix_tokens :].float().cpu().numpy())
            counts = batch["counts"].numpy()
            either = np.stack([counts[..., 0], counts[..., 1:].sum(-1)], axis=-1)
            truth.append(np.stack([part_metrics.majority(image) for image in either]))
        return np.concatenate(tokens), np.concatenate(truth)


def _some(reader: Reader, samples: int) -> Reader:
    """A fixed sample of a reader, spread over its classes by chance."""
    return reader.select(numpy_generator(0, "health").permutation(len(reader))[:samples])
