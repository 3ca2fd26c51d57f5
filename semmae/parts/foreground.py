"""What stands out, without labels: content of the kind that images show in their middle, and where on it a patch lies.

Who takes a picture puts what it is about in its middle, and the background reaches the border: the boundary prior of
saliency detection (Wei et al., Geodesic Saliency, ECCV 2012), here a prior on kinds of content over a whole dataset
instead of on regions of one image. `Foreground` clusters the patch tokens of many images, several times over; a cluster
is as central as the places where it occurs are, and a patch as its clusters are on average.

One clustering is too coarse for an outline, and many clusters say too little each: the average of several keeps both
(docs/method.md). What kinds of content cannot tell, the image can: its patches share what they know of themselves with
those that look alike. A network that predicts the place from a token would be sharper and useless: tokens remember
where they are, and it reads that.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.nn import functional

from semmae.core.rng import fold

WIDTH = 0.5  # of the Gaussian, in halves of an image's side
SOFTNESS = 0.5  # of the step from background to foreground, in standard deviations of the evidence
PITCH = 0.9  # radians per standard deviation of an object's extent: opposite ends stay apart
ALIKE = 0.1  # temperature of the cosines that say how alike two patches of an image are
RESTART = 0.1  # share of its own evidence that a patch keeps at every step of the walk
IMAGES = 400  # per clustering, at most: each sees others
CHUNK = 64  # images at a time
LEAST_SPREAD = 1e-4  # of the evidence; below it, what there is, is rounding


class Foreground(nn.Module):
    """The share of foreground in each patch, from its token; `fit` finds it in the tokens of a sample of images.

    The keys of `config`: `clusterings` and `clusters` in each; `place`: the weight of a patch's own place beside its
    content, in standard deviations of either; `walk`: steps of the walk among the patches of an image that look alike;
    `groups`: of patches by their evidence, of which the highest is foreground.
    """

    codebooks: Tensor
    central: Tensor
    prior: Tensor
    threshold: Tensor
    spread: Tensor

    def __init__(self, config: dict[str, Any], *, grid: tuple[int, int], width: int) -> None:
        super().__init__()
        self.center_prior: float = config["center_prior"]
        self.steps: int = config["diffusion_steps"]
        self.threshold_classes: int = config["threshold_classes"]
        count, size = config["clusterings"], config["clusters"]
        self.register_buffer("codebooks", torch.zeros(count, size, width))
        self.register_buffer("central", torch.ones(count, size))
        self.register_buffer("prior", centeredness(grid))
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("spread", torch.ones(()))

    def fit(self, unit: Float[Tensor, "s n d"], patch: Float[Tensor, "s n d"], *, seed: int) -> None:
        """Cluster the tokens of whole images, given as in `forward`; ValueError where no content prefers the
        middle, or where there are fewer patches than clusters.
        """
        from sklearn.cluster import KMeans, MiniBatchKMeans  # here, for they load as long as a small stage runs

        patches, wanted = min(len(unit), IMAGES) * unit.shape[1], self.central.shape[1]
        if patches < wanted:
            raise ValueError(
                f"parts.learned.foreground.clusters is {wanted}, but {len(unit)} images have {patches} patches; lower "
                "it, or raise parts.num_images"
            )
        for i, centroids in enumerate(self.codebooks):
            once = fold(seed, i) % 2**32
            chosen = np.random.default_rng(once).permutation(len(unit))[:IMAGES]
            clusters = MiniBatchKMeans(len(centroids), n_init=1, batch_size=4096, max_iter=20, random_state=once)
            found = clusters.fit(unit[chosen].flatten(0, 1).numpy()).cluster_centers_
            centroids.copy_(functional.normalize(torch.from_numpy(found.astype(np.float32)), dim=-1))
        near = torch.cat([self.nearest(some) for some in unit.split(CHUNK)])
        for ids, central in zip(near.unbind(-1), self.central, strict=True):
            occurs = ids.flatten().bincount(minlength=len(central))
            total = torch.zeros_like(central).index_add_(0, ids.flatten(), self.prior.repeat(len(unit)))
            central.copy_(torch.where(occurs > 0, total / occurs.clamp(min=1), 1.0))
        self.spread.copy_(self.content(near).std())
        if self.spread < LEAST_SPREAD:
            raise ValueError(
                "no content of the images prefers their middle, so there is no foreground to find; set "
                "parts.learned.foreground to null: every patch then belongs to a part"
            )
        evidence = torch.cat([self.evidence(*some) for some in zip(unit.split(CHUNK), patch.split(CHUNK), strict=True)])
        # means of one number, as Otsu (1979) has two groups, and in section III more of them
        means = (
            KMeans(self.threshold_classes, n_init=4, random_state=0)
            .fit(evidence.reshape(-1, 1).numpy())
            .cluster_centers_
        )
        self.threshold.fill_(float(np.sort(means.ravel())[-2:].mean()))

    def nearest(self, unit: Float[Tensor, "b n d"]) -> Integer[Tensor, "b n r"]:
        """The cluster of each patch in each clustering."""
        return torch.einsum("bnd,rkd->bnrk", unit, self.codebooks).argmax(-1)

    def content(self, near: Integer[Tensor, "b n r"]) -> Float[Tensor, "b n"]:
        """How central a patch's kinds of content are, mean over clusterings; 1: as the average place."""
        return self.central[torch.arange(len(self.central), device=near.device), near].mean(-1)

    def evidence(self, unit: Float[Tensor, "b n d"], patch: Float[Tensor, "b n d"]) -> Float[Tensor, "b n"]:
        """That and, as far as `place` lets it count, the patch's own place; shared among patches that look alike."""
        place = self.center_prior * self.spread / self.prior.std() * (self.prior - 1)
        return diffuse(self.content(self.nearest(unit)) + place, alike(patch), steps=self.steps)

    def forward(self, unit: Float[Tensor, "b n d"], patch: Float[Tensor, "b n d"]) -> Float[Tensor, "b n"]:
        """The share of foreground in [0, 1], one half at the threshold; from prepared tokens of unit length and those
        of the teacher.

        The threshold lies half-way between that of the dataset and the image's own: some objects stand out less.
        """
        evidence = self.evidence(unit, patch)
        threshold = (self.threshold + otsu(evidence)) / 2
        return torch.sigmoid((evidence - threshold[:, None]) / (SOFTNESS * self.spread))


def otsu(values: Float[Tensor, "b n"]) -> Float[Tensor, " b"]:
    """Per row, the middle between the means of the two groups that differ most (Otsu 1979): two means, exactly."""
    ranked = values.sort(1).values
    below = torch.arange(1, values.shape[1], device=values.device)
    sums, above = ranked.cumsum(1), values.shape[1] - below
    low, high = sums[:, :-1] / below, (sums[:, -1:] - sums[:, :-1]) / above
    best = (below * above * (high - low).square()).argmax(1, keepdim=True)
    return ((low + high) / 2).gather(1, best)[:, 0]


def alike(patch: Float[Tensor, "b n d"]) -> Float[Tensor, "b n n"]:
    """How much each patch of an image resembles the others of that image: softmax of cosines, rows sum to 1.

    Of the teacher's tokens less the image's mean: in one image, unlike between images, its colors and textures tell.
    """
    unit = functional.normalize(patch - patch.mean(1, keepdim=True), dim=-1)
    return ((unit @ unit.transpose(1, 2)).float() / ALIKE).softmax(-1)


def diffuse(evidence: Float[Tensor, "b n"], weights: Float[Tensor, "b n n"], *, steps: int) -> Float[Tensor, "b n"]:
    """`evidence` after a random walk with restart among the patches (Zhou et al., NeurIPS 2003), `steps` long."""
    found = evidence
    with torch.autocast(evidence.device.type, enabled=False):  # small products that follow one another
        for _ in range(steps):
            found = (1 - RESTART) * (weights @ found[:, :, None])[:, :, 0] + RESTART * evidence
    return found


def places(grid: tuple[int, int], *, device: torch.device | str = "cpu") -> Float[Tensor, "n 2"]:
    """Row and column of every patch's center, -1...1 from edge to edge."""
    rows, columns = ((torch.arange(side, device=device) + 0.5) / side * 2 - 1 for side in grid)
    return torch.cartesian_prod(rows, columns)


def centeredness(grid: tuple[int, int]) -> Float[Tensor, " n"]:
    """A Gaussian around the image's center, mean 1."""
    weights = torch.exp(-places(grid).square().sum(1) / (2 * WIDTH**2))
    return weights / weights.mean()


def object_code(foreground: Float[Tensor, "b n"], grid: tuple[int, int]) -> Float[Tensor, "b n 4"]:
    """Where on its object a patch lies, as a unit vector: sine and cosine of its height and of its distance from the
    middle.

    Both relative to mean and standard deviation of the places that are foreground (share above one half); left and
    right are one, since objects face either way. An image without foreground counts as all foreground.
    """
    place = places(grid, device=foreground.device)
    weights = (2 * foreground - 1).clamp(min=0) + 1e-9
    weights = (weights / weights.sum(1, keepdim=True))[:, :, None]
    center = (weights * place).sum(1, keepdim=True)
    extent = (weights * (place - center).square()).sum(1, keepdim=True).sqrt()
    least = 2 * (1 - place[-1])  # one patch
    height, across = (PITCH * (place - center) / extent.maximum(least)).unbind(-1)
    across = across.abs()
    return torch.stack([height.sin(), height.cos(), across.sin(), across.cos()], dim=-1) / 2**0.5
