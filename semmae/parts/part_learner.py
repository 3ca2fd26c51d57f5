"""The part learner: part maps from the tokens of a frozen teacher, learned without labels.

The learner separates the background, and compares one query per part with the key of each patch. A softmax over the
parts turns the cosines of a patch into its shares of the parts. Training (`semmae.training.parts_loop`) maximizes the
information of the labels about the patches of an image (`image_information`).

Two kinds of keys exist, because teachers differ (`content_keys`, `position_keys`). For `keys: auto`, the learner takes
content if the tokens show the objects by themselves (`foreground_evidence` and `otsu_separation`), and position
otherwise.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn

from semmae.core.rng import fold
from semmae.models.teacher import Tokens
from semmae.parts.content_keys import ContentKeys
from semmae.parts.foreground import CHUNK_SIZE, gaussian_center_map, otsu_separation
from semmae.parts.image_information import temperature_of_entropy
from semmae.parts.part_method import PartMethod
from semmae.parts.position_keys import PositionKeys
from semmae.parts.spherical_kmeans import MAX_PATCHES, spherical_kmeans, subsample

SHARPNESS = 3.0  # of shares in part maps; otherwise, patches between two parts would count as background
# for keys by content, of the foreground that the tokens show; docs/results/part_learning.md has measured values
MIN_EVIDENCE, MIN_SEPARATION = 0.25, 0.78  # `foreground_evidence` and `otsu_separation`


class PartLearner(PartMethod):
    """Part queries that are compared with the keys of patches.

    Args:
        config: The keys of `PartMethod`, `embed_dim` (size of a token), and the fields of `PartLearnerConfig` in
            `semmae.training.parts_loop`. `keys` is `auto` only before `fit`, which writes its choice to the config.
    """

    temperature: Tensor

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.register_buffer("temperature", torch.ones(()))
        if config["keys"] != "auto":
            by_content = config["keys"] == "content"
            self._set_keys(self._create_content_keys() if by_content else self._create_position_keys())

    def _create_content_keys(self) -> ContentKeys:
        return ContentKeys(
            grid=self.grid,
            embed_dim=self.config["embed_dim"],
            smoothing_steps=self.config["smoothing_steps"],
            background=self.background is not None,
        )

    def _create_position_keys(self) -> PositionKeys:
        return PositionKeys(
            self.config["foreground"],
            grid=self.grid,
            embed_dim=self.config["embed_dim"],
            position_weight=self.config["position_weight"],
        )

    def _set_keys(self, keys: ContentKeys | PositionKeys) -> None:
        self.keys = keys
        self.queries = nn.Parameter(torch.zeros(self.num_parts, keys.size))
        self.bias = nn.Parameter(torch.zeros(self.num_parts))

    def fit(self, patch: Float[Tensor, "s n d"], *, seed: int) -> dict[str, float]:
        """Fit keys, foreground and temperature to a sample of images, and start the queries by k-means of the keys.

        Returns:
            `evidence` and `separation`, the `foreground_evidence` and `otsu_separation` of the tokens; `content`, 1 for
            keys by content and 0 for keys by position; `foreground`, the share of patches that are foreground.

        Raises:
            ValueError: There is no foreground, or it has fewer patches than there are parts.
        """
        content = self._create_content_keys()
        content.fit(patch)
        scores = content.foreground_score(patch)
        evidence, separation = foreground_evidence(scores, self.grid), otsu_separation(scores)
        if self.config["keys"] == "auto":
            shows_objects = evidence >= MIN_EVIDENCE and separation >= MIN_SEPARATION
            self.config["keys"] = "content" if shows_objects else "position"
        if self.config["keys"] == "content":
            self._set_keys(content)
        else:
            position = self._create_position_keys()
            position.fit(patch, seed=seed)
            self._set_keys(position)
        keys, share = self.compute_keys(patch)
        if (count := int((share > 0.5).sum())) < self.num_parts:
            raise ValueError(
                f"parts.num_parts is {self.num_parts}, but {count} patches of {len(patch)} images are foreground; "
                "lower it, or raise parts.num_images"
            )
        inside = subsample(keys[share > 0.5], MAX_PATCHES, seed=fold(seed, "patches"))
        centroids = spherical_kmeans(inside, self.num_parts, seed=seed)
        self.queries.data.copy_(centroids)
        self.temperature.fill_(temperature_of_entropy(inside @ centroids.T, self.config["initial_entropy"]))
        by_content = float(self.config["keys"] == "content")
        foreground = float((share > 0.5).float().mean())
        return {"evidence": evidence, "separation": separation, "content": by_content, "foreground": foreground}

    @torch.no_grad()
    def compute_keys(self, patch: Float[Tensor, "s n d"]) -> tuple[Float[Tensor, "s n e"], Float[Tensor, "s n"]]:
        """Return the keys of many images, of unit length, and the foreground share of each patch."""
        keys, shares = zip(*(self.keys(chunk) for chunk in patch.split(CHUNK_SIZE)), strict=True)
        return torch.cat(keys), torch.cat(shares)

    def divide(self, keys: Float[Tensor, "b n e"], *, sharpness: float = 1.0) -> Float[Tensor, "b n p"]:
        """Return the share of each part in each patch, from the keys.

        Args:
            keys: The keys of the patches.
            sharpness: Shares are raised to this power, and divided by their sum.
        """
        logits = keys @ F.normalize(self.queries, dim=-1).T / self.temperature + self.bias
        return (sharpness * logits).softmax(-1)

    def assign(self, tokens: Tokens, counts: Integer[Tensor, "b n g"] | None = None) -> Float[Tensor, "b p n"]:
        """Divide the foreground share of each patch among the parts. The last label gets the background share."""
        with torch.autocast(tokens.patch.device.type, enabled=False):  # as in the fit, whatever the teacher's precision
            keys, share = self.keys(tokens.patch)
            parts = self.divide(keys, sharpness=SHARPNESS).transpose(1, 2) * share[:, None]
        return parts if self.background is None else torch.cat([parts, 1 - share[:, None]], dim=1)


def foreground_evidence(scores: Float[Tensor, "s n"], grid: tuple[int, int]) -> float:
    """Rate a foreground score without labels; higher is better, at most 1.

    The rating is the product of two numbers. The first tells how well one threshold separates two classes of patches
    (`otsu_separation`). The second is the correlation of the score with a prior for the center of images, because most
    photographs show their subject there. A principal component of a weak teacher separates bright from dark patches;
    it has the first property, but not the second. docs/results/part_learning.md compares it with true masks.
    """
    center = gaussian_center_map(grid) - 1
    deviations = (scores.std(correction=0) * center.std(correction=0)).clamp(min=1e-12)
    correlation = ((scores - scores.mean()) * center).mean() / deviations
    return float(correlation) * otsu_separation(scores)
