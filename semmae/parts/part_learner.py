"""Part learning (SemMAE section 3.1): from a frozen teacher's tokens to a soft map per part, without labels.

The paper's equations are in no public code; docs/method.md says what is ours and why. A `PartLearner`
- sets the background apart first: what is not of the kind that images show in their middle (`foreground`),
- embeds the class token into one query per part (learned queries where no class token was trained),
- correlates them with what each foreground patch shows and where on the object it lies: cosine over temperature,
  softmax over the queries, so every patch is shared out once,
- in training blurs the maps and lets a decoder rebuild the target from them: the maps are its only spatial input,
  the class token its only other one, through AdaIN. What the maps do not separate in space, the decoder cannot draw.
`KMeansParts`, spherical k-means on the same tokens, is the training-free baseline. Both assign, save and load alike.
"""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from semmae.core.model_files import load_model, model_digest, save_model
from semmae.core.rng import fold
from semmae.models.patches import patchify
from semmae.models.teacher import Tokens
from semmae.models.vit import normalize
from semmae.parts.foreground import CHUNK, Foreground, object_code

OBJECT_CODE = 4  # numbers of `foreground.object_code`
SHRINK = 0.01  # of the mean variance, added before whitening: directions of mere noise stay quiet


class PartMethod(nn.Module):
    """What every part method shares: prepared tokens, `num_parts` labels and perhaps a background after them.

    Raw tokens of a small teacher say first of all where a patch is and how bright, and k-means follows the loudest
    channels. So tokens are taken relative to the mean at their place, whitened, and joined by the mean of their
    neighborhood.
    """

    position_mean: Tensor
    whiten: Tensor

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config, self.digest = config, ""
        self.grid: tuple[int, int] = tuple(config["grid"])
        self.num_parts: int = config["num_parts"]
        self.background: int | None = config["num_parts"] if config["background"] else None
        self.num_labels = self.num_parts + (self.background is not None)
        self.register_buffer("position_mean", torch.zeros(self.grid[0] * self.grid[1], config["embed_dim"]))
        self.register_buffer("whiten", torch.eye(config["embed_dim"]))

    def prepare(self, patch: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Whitened tokens without what their place alone says, each plus the mean of the 3 x 3 patches around it."""
        x = ((patch - self.position_mean) @ self.whiten).float()
        around = F.pad(x.transpose(1, 2).unflatten(2, self.grid), [1] * 4, mode="replicate")
        return x + F.avg_pool2d(around, 3, stride=1).flatten(2).transpose(1, 2)

    def fit_scale(self, patch: Float[Tensor, "s n d"]) -> None:
        """Set mean and whitening from the tokens of a sample of training images."""
        self.position_mean.copy_(patch.mean(0))
        x = (patch - self.position_mean).flatten(0, 1).double()
        variance, axes = torch.linalg.eigh(x.T @ x / len(x))
        self.whiten.copy_(axes / (variance + SHRINK * variance.mean()).sqrt())

    def assign(self, tokens: Tokens) -> Float[Tensor, "b p n"]:
        """Each patch's share of every label (sums to 1 over labels); the argmax is the part map."""
        raise TypeError(f"{type(self).__name__} does not assign parts")


class KMeansParts(PartMethod):
    """Nearest of `num_parts` directions, found by k-means on unit-length tokens; there is no background of its own."""

    centroids: Tensor

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.register_buffer("centroids", torch.zeros(self.num_labels, config["embed_dim"]))

    def fit(self, patch: Float[Tensor, "s n d"], *, seed: int) -> float:
        """Find the directions in the tokens of a sample of images; returns the mean cosine to the nearest one."""
        self.fit_scale(patch)
        unit = F.normalize(self.prepare(patch), dim=-1).flatten(0, 1)
        self.centroids.copy_(spherical_kmeans(unit, self.num_labels, seed=seed))
        return float((unit @ self.centroids.T).amax(1).mean())

    def assign(self, tokens: Tokens) -> Float[Tensor, "b p n"]:
        cosine = F.normalize(self.prepare(tokens.patch), dim=-1) @ self.centroids.T
        return (cosine / self.config["temperature"]).softmax(-1).transpose(1, 2)


def spherical_kmeans(unit: Float[Tensor, "s d"], count: int, *, seed: int) -> Float[Tensor, "p d"]:
    """Spherical k-means: `count` unit vectors near which the rows of `unit` lie; ValueError for fewer rows."""
    if len(unit) < count:
        raise ValueError(
            f"parts.num_parts is {count}, but there are {len(unit)} patches; lower it, or raise parts.num_images"
        )
    from sklearn.cluster import KMeans  # here, for it takes as long to load as a small stage to run

    found = KMeans(count, n_init=4, random_state=seed % 2**32).fit(unit.numpy()).cluster_centers_
    return F.normalize(torch.from_numpy(np.asarray(found, dtype=np.float32)), dim=-1)


class PartLearner(PartMethod):
    """Part queries and the decoder that trains them; see the module's text."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        width = config["embed_dim"]
        if self.background is not None:
            self.foreground = Foreground(config["foreground"], grid=self.grid, width=width)
        self.queries = nn.Parameter(torch.randn(self.num_parts, width + OBJECT_CODE))
        if config["class_token"]:
            self.embed_class = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
            last = nn.Linear(width, self.queries.numel())
            nn.init.zeros_(last.weight)  # at first the queries are the same in every image: labels stay aligned
            nn.init.zeros_(last.bias)
            self.embed_class.append(last)
        self.embed_patch = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.embed_patch.weight)
        self.decoder = PartDecoder(
            self.num_labels, config["decoder_width"], config["decoder_depth"], width, config["target_dim"]
        )

    def fit(self, patch: Float[Tensor, "s n d"], *, seed: int) -> None:
        """Find the foreground, then start from k-means: its directions there are the queries.

        ValueError where there is no foreground, or too little of it for so many parts.
        """
        self.fit_scale(patch)
        if self.background is not None:
            self.foreground.fit(F.normalize(self.prepare(patch), dim=-1), patch, seed=fold(seed, "foreground"))
        with torch.no_grad():
            keys, share = (torch.cat(found) for found in zip(*map(self.keys, patch.split(CHUNK)), strict=True))
        if (count := int((share > 0.5).sum())) < self.num_parts:
            raise ValueError(
                f"parts.num_parts is {self.num_parts}, but {count} patches of {len(patch)} images are foreground; "
                "lower it, or raise parts.num_images"
            )
        self.queries.data.copy_(spherical_kmeans(keys[share > 0.5], self.num_parts, seed=seed))

    def keys(self, patch: Float[Tensor, "b n d"]) -> tuple[Float[Tensor, "b n e"], Float[Tensor, "b n"]]:
        """Unit vectors of what a patch shows and, with the weight `position_weight`, where on the object it lies; and its
        share of foreground.
        """
        prepared = self.prepare(patch)
        if self.background is None:
            share = prepared.new_ones(prepared.shape[:2])
        else:
            share = self.foreground(F.normalize(prepared, dim=-1), patch)
        where = self.config["position_weight"] * object_code(share, self.grid)
        keys = torch.cat([F.normalize(self.embed_patch(prepared).float(), dim=-1), where], dim=-1)
        return F.normalize(keys, dim=-1), share

    def assign(self, tokens: Tokens) -> Float[Tensor, "b p n"]:
        keys, share = self.keys(tokens.patch)
        queries = self.queries.expand(len(keys), -1, -1)
        if self.config["class_token"]:
            queries = queries + self.embed_class(tokens.cls).view(queries.shape)
        correlation = F.normalize(queries, dim=-1) @ keys.transpose(1, 2)  # (b, p, n)
        parts = (correlation / self.config["temperature"]).softmax(1) * share[:, None]
        return parts if self.background is None else torch.cat([parts, 1 - share[:, None]], dim=1)

    def forward(self, tokens: Tokens) -> tuple[Float[Tensor, "b p n"], Float[Tensor, "b n v"]]:
        """The maps, and what the decoder rebuilds from them, blurred, and the style."""
        maps = self.assign(tokens)
        spatial = blur(maps.unflatten(2, self.grid), self.config["blur_sigma"])
        return maps, self.decoder(spatial, tokens.cls).flatten(2).transpose(1, 2)


class PartDecoder(nn.Module):
    """Convolutions over the maps, each instance-normalized and restyled by the class token (AdaIN, Huang & Belongie
    2017).
    """

    def __init__(self, labels: int, width: int, depth: int, style: int, values: int) -> None:
        super().__init__()
        sizes = [labels] + [width] * depth
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1, padding_mode="replicate") for a, b in itertools.pairwise(sizes)
        )
        self.style = nn.LayerNorm(style)
        self.styles = nn.ModuleList(nn.Linear(style, 2 * width) for _ in range(depth))
        self.out = nn.Conv2d(width, values, 1)

    def forward(self, maps: Float[Tensor, "b p h w"], style: Float[Tensor, "b d"]) -> Float[Tensor, "b v h w"]:
        x, style = maps, self.style(style)
        for convolve, restyle in zip(self.convolutions, self.styles, strict=True):
            scale, shift = restyle(style)[:, :, None, None].chunk(2, dim=1)
            x = F.gelu(F.instance_norm(convolve(x)) * (1 + scale) + shift)
        return self.out(x)


def blur(maps: Float[Tensor, "b p h w"], sigma: float) -> Float[Tensor, "b p h w"]:
    """Gaussian blur, sigma in patches, edges repeated; 0 leaves the maps as they are."""
    if sigma == 0:
        return maps
    radius = math.ceil(2 * sigma)
    kernel = torch.exp(-torch.arange(-radius, radius + 1, device=maps.device).float().square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(maps.shape[1], 1, 1, -1)
    x = F.pad(maps, [radius] * 4, mode="replicate")
    x = F.conv2d(x, kernel, groups=maps.shape[1])
    return F.conv2d(x, kernel.transpose(2, 3), groups=maps.shape[1])


def diversity_loss(maps: Float[Tensor, "b p n"]) -> Float[Tensor, ""]:
    """How much maps overlap: the sum over ordered pairs of labels of their product, mean over patches.

    0 when every patch is decided; what a foreground that is found beforehand is unsure of, stays.
    """
    return (1 - maps.square().sum(1)).mean()


def balance_loss(shares: Float[Tensor, " p"], floor: float) -> Float[Tensor, ""]:
    """How far the labels' shares of a batch's patches fall below `floor`, relative to it, mean over labels; 0 when all
    are used.

    A floor, not a uniform prior: parts differ in size, and the background, which nothing here moves, keeps its own.
    """
    return (1 - shares / floor).clamp(min=0).mean()


def pixel_targets(images: UInt8[Tensor, "b 3 H W"], patch_size: int) -> Float[Tensor, "b n v"]:
    """Pixels as the decoder's target, row by row of patches, in the teacher's zero-mean, unit-variance units."""
    return patchify(normalize(images), patch_size)


PART_METHODS = {"learned": PartLearner, "kmeans": KMeansParts}


def save_parts(folder: Path, parts: PartMethod) -> None:
    """Write parts.safetensors and parts.json."""
    save_model(folder, "parts", parts.state_dict(), parts.config)


def load_parts(folder: Path, *, teacher: str | None = None) -> PartMethod:
    """The part method in `folder`, frozen; ValueError if it was learned from a teacher with another digest."""
    state, config = load_model(folder, "parts")
    if teacher is not None and teacher != config["teacher"]:
        raise ValueError(f"{folder} was learned from another teacher than the one beside it; run dvc repro parts")
    parts = PART_METHODS[config["method"]](config)
    parts.load_state_dict(state, strict=True)
    parts.digest = model_digest(folder, "parts")
    return parts.eval().requires_grad_(False)
