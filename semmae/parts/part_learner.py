"""The part learner (SemMAE, section 3.1): part maps from the tokens of a frozen teacher, learned without labels.

The learner first separates the background (`foreground`). It then compares one query per part with one key per patch. A
softmax over the parts turns the cosines of a patch into its shares of the parts. A decoder (`part_decoder`), which is
used in training only, reconstructs a target from these maps. The equations follow the paper, which has no public code;
docs/explanation/method.md lists the differences.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn

from semmae.core.rng import fold
from semmae.models.teacher import Tokens
from semmae.parts.foreground import CHUNK_SIZE, Foreground, object_code
from semmae.parts.kmeans_parts import spherical_kmeans
from semmae.parts.part_decoder import PartDecoder, blur
from semmae.parts.token_part_method import TokenPartMethod

OBJECT_CODE_DIM = 4  # size of `foreground.object_code`


class PartLearner(TokenPartMethod):
    """Part queries, and the decoder that trains them.

    Args:
        config: The keys of `TokenPartMethod`, and the fields of `PartLearnerConfig` in `semmae.training.parts_loop`.
            `class_token` is whether the teacher has a trained class token. `target_dim` is the number of target values
            per patch.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        embed_dim = config["embed_dim"]
        if self.background is not None:
            self.foreground = Foreground(config["foreground"], grid=self.grid, embed_dim=embed_dim)
        self.queries = nn.Parameter(torch.randn(self.num_parts, embed_dim + OBJECT_CODE_DIM))
        if config["class_token"]:
            self.embed_class = nn.Sequential(nn.LayerNorm(embed_dim), nn.Linear(embed_dim, embed_dim), nn.GELU())
            last = nn.Linear(embed_dim, self.queries.numel())
            nn.init.zeros_(last.weight)  # zero output: training starts from the same queries in all images
            nn.init.zeros_(last.bias)
            self.embed_class.append(last)
        self.embed_patch = nn.Linear(embed_dim, embed_dim, bias=False)
        nn.init.eye_(self.embed_patch.weight)
        self.decoder = PartDecoder(
            self.num_labels, config["decoder_width"], config["decoder_depth"], embed_dim, config["target_dim"]
        )

    def fit(self, patch: Float[Tensor, "s n d"], *, seed: int) -> dict[str, float]:
        """Fit whitening and foreground to a sample of images, and initialize the queries by k-means of the keys.

        Returns:
            `foreground`, the share of patches that are foreground.

        Raises:
            ValueError: There is no foreground, or it has fewer patches than there are parts.
        """
        self.fit_whitening(patch)
        if self.background is not None:
            unit = F.normalize(self.prepare_tokens(patch), dim=-1)
            self.foreground.fit(unit, patch, seed=fold(seed, "foreground"))
        with torch.no_grad():
            chunks = [self.compute_keys(chunk) for chunk in patch.split(CHUNK_SIZE)]
        keys, foreground = (torch.cat(tensors) for tensors in zip(*chunks, strict=True))
        if (count := int((foreground > 0.5).sum())) < self.num_parts:
            raise ValueError(
                f"parts.num_parts is {self.num_parts}, but {count} patches of {len(patch)} images are foreground; "
                "lower it, or raise parts.num_images"
            )
        self.queries.data.copy_(spherical_kmeans(keys[foreground > 0.5], self.num_parts, seed=seed))
        return {"foreground": float((foreground > 0.5).float().mean())}

    def compute_keys(self, patch: Float[Tensor, "b n d"]) -> tuple[Float[Tensor, "b n e"], Float[Tensor, "b n"]]:
        """Compute the key of each patch from its content and its position on the object.

        Args:
            patch: The teacher's patch tokens.

        Returns:
            Keys of unit length, and the foreground share of each patch.
        """
        prepared = self.prepare_tokens(patch)
        if self.background is None:
            foreground = prepared.new_ones(prepared.shape[:2])
        else:
            foreground = self.foreground(F.normalize(prepared, dim=-1), patch)
        position = self.config["position_weight"] * object_code(foreground, self.grid)
        keys = torch.cat([F.normalize(self.embed_patch(prepared).float(), dim=-1), position], dim=-1)
        return F.normalize(keys, dim=-1), foreground

    def assign(self, tokens: Tokens, counts: Integer[Tensor, "b n g"] | None = None) -> Float[Tensor, "b p n"]:
        """Divide the foreground share of each patch among the parts. The last label gets the background share."""
        keys, foreground = self.compute_keys(tokens.patch)
        queries = self.queries.expand(len(keys), -1, -1)
        if self.config["class_token"]:
            queries = queries + self.embed_class(tokens.cls).view(queries.shape)
        cosine = F.normalize(queries, dim=-1) @ keys.transpose(1, 2)  # (b, p, n)
        parts = (cosine / self.config["temperature"]).softmax(1) * foreground[:, None]
        return parts if self.background is None else torch.cat([parts, 1 - foreground[:, None]], dim=1)

    def forward(self, tokens: Tokens) -> tuple[Float[Tensor, "b p n"], Float[Tensor, "b n v"]]:
        """Return the part maps, and the decoder's reconstruction from the blurred maps."""
        maps = self.assign(tokens)
        spatial = blur(maps.unflatten(2, self.grid), self.config["blur_sigma"])
        return maps, self.decoder(spatial, tokens.cls).flatten(2).transpose(1, 2)
