"""iBOT: self-distillation with an online tokenizer (Zhou et al. 2022), which contains DINO (Caron et al. 2021).

A student sees crops of an image, some of their patches replaced by a mask token; a teacher, the student's moving
average, sees the two global crops whole. The student's class token matches the teacher's across crops (class loss,
DINO eq. 1-2); its masked patches match the teacher's patches of the same crop (patch loss, iBOT eq. 2). Centring
keeps the teacher from one-cluster collapse, a sharp temperature from the uniform one.

Letters: g global crops, l all crops, m prototypes.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from semmae.core import distributed


class ProjectionHead(nn.Module):
    """Three-layer projection, L2 norm, prototypes of unit length: the cosine to each of `prototypes` (DINO appendix
    C).
    """

    def __init__(self, width: int, *, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.prototypes = nn.Parameter(torch.randn(prototypes, bottleneck))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.orthogonal_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... m"]:
        """Logits in [-1, 1]."""
        return F.normalize(self.mlp(x), dim=-1) @ F.normalize(self.prototypes, dim=-1).T


class IBOTNetwork(nn.Module):
    """A ViT, its mask token and its head (shared by class token and patches, as iBOT's ViT-S)."""

    def __init__(self, vit: VisionTransformer, head: ProjectionHead) -> None:
        super().__init__()
        self.vit, self.head = vit, head
        self.mask_token = nn.Parameter(torch.zeros(vit.embed_dim))

    def forward(
        self, images: Float[Tensor, "b 3 H W"], mask: Bool[Tensor, "b n"] | None = None
    ) -> tuple[Float[Tensor, "b m"], Float[Tensor, "b n m"]]:
        """Logits of the class token and of the patches; patches under `mask` enter as the mask token."""
        x = self.vit.patch_embed(images)  # (b, h, w, d)
        if mask is not None:
            x = torch.where(mask.view(*x.shape[:3], 1), self.mask_token.to(x.dtype), x)
        x = self.vit.norm(self.vit.blocks(self.vit.norm_pre(self.vit._pos_embed(x))))
        return self.head(x[:, 0]), self.head(x[:, self.vit.num_prefix_tokens :])


def centered_targets(
    logits: Float[Tensor, "... m"], center: Float[Tensor, " m"], temperature: float
) -> Float[Tensor, "... m"]:
    """The teacher's distributions: centered, sharpened, without gradient."""
    return ((logits.detach().float() - center) / temperature).softmax(-1)


def sinkhorn_targets(logits: Float[Tensor, "... m"], temperature: float) -> Float[Tensor, "... m"]:
    """The teacher's distributions with every prototype used equally within the batch (Caron et al. 2020, SwAV,
    section 3.1).

    Three rounds of the Sinkhorn-Knopp algorithm on exp(logits / temperature), in logarithms; without gradient.
    """
    log_q = logits.detach().float().flatten(0, -2) / temperature
    for _ in range(3):
        log_q = log_q - log_q.logsumexp(0, keepdim=True)  # every prototype the same share
        log_q = log_q - log_q.logsumexp(1, keepdim=True)  # every sample a distribution
    return log_q.exp().view(logits.shape)


def cross_entropy(
    student: Float[Tensor, "... m"], target: Float[Tensor, "... m"], temperature: float
) -> Float[Tensor, "..."]:
    """The cross entropy of the student's sharpened distribution under the target's, in nats."""
    return -(target * (student.float() / temperature).log_softmax(-1)).sum(-1)


def class_loss(
    student: Float[Tensor, "l b m"], target: Float[Tensor, "g b m"], temperature: float
) -> Float[Tensor, ""]:
    """Mean cross entropy over the pairs of a teacher's global crop and a student's *other* crop (global crops lead
    in both).
    """
    pairs = [
        cross_entropy(student[i], target[j], temperature).mean()
        for j in range(len(target)) for i in range(len(student)) if i != j
    ]  # fmt: skip
    return torch.stack(pairs).mean()


def patch_loss(
    student: Float[Tensor, "b n m"],
    target: Float[Tensor, "b n m"],
    mask: Bool[Tensor, "b n"],
    temperature: float,
    masked_images: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Cross entropy on masked patches: mean over an image's masked patches, then over the images that have any.

    Of those there are `masked_images`: with several ranks as many as each has on average.
    """
    error = cross_entropy(student, target, temperature) * mask
    by_image = error.sum(1) / mask.sum(1).clamp(min=1)
    return by_image.sum() / masked_images.clamp(min=1e-6)  # where none is masked the sum is 0


def entropy(probabilities: Float[Tensor, "... m"]) -> Float[Tensor, ""]:
    """Mean entropy in nats: ln m says that the targets hold nothing, 0 that they are one-hot."""
    return -(probabilities * probabilities.clamp(min=1e-12).log()).sum(-1).mean()


@torch.no_grad()
def update_center(center: Float[Tensor, " m"], mean: Float[Tensor, " m"], momentum: float) -> None:
    """The moving mean of the teacher's logits, in place (DINO eq. 4); `mean` is that of a batch."""
    center.mul_(momentum).add_(mean, alpha=1 - momentum)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """The moving average of the student's parameters, in place."""
    torch._foreach_lerp_(list(teacher.parameters()), [p.detach() for p in student.parameters()], 1 - momentum)


class SelfDistillation(nn.Module):
    """Student, teacher and centers as one module, so that a checkpoint or a process group handles them together.

    What the teacher's targets depend on is the batch of all ranks: two see what one would.
    """

    class_center: Tensor
    patch_center: Tensor

    def __init__(
        self, student: IBOTNetwork, teacher: IBOTNetwork, *, centering: Literal["mean", "sinkhorn"], center_momentum: float,
        world: distributed.World,
    ) -> None:  # fmt: skip
        super().__init__()
        self.centering, self.world = centering, world
        self.student, self.teacher, self.center_momentum = student, teacher.requires_grad_(False), center_momentum
        teacher.load_state_dict(student.state_dict())
        prototypes = len(student.head.prototypes)
        self.register_buffer("class_center", torch.zeros(prototypes))
        self.register_buffer("patch_center", torch.zeros(prototypes))

    def forward(
        self,
        global_crops: Float[Tensor, "gb 3 H W"],
        local_crops: Float[Tensor, "lb 3 h w"] | None,
        mask: Bool[Tensor, "gb n"],
        *,
        student_temp: float,
        teacher_temp: float,
    ) -> dict[str, Tensor]:
        """The losses of a step, the teacher's entropies and its raw logits; crops are crop-major: both global ones
        of size b.
        """
        with torch.no_grad():
            class_logits, patch_logits = self.teacher(global_crops)
        class_target = self._targets(class_logits, self.class_center, teacher_temp)
        patch_target = self._targets(patch_logits, self.patch_center, teacher_temp)
        student_class, student_patch = self.student(global_crops, mask)
        if local_crops is not None:
            student_class = torch.cat([student_class, self.student(local_crops)[0]])
        b = len(global_crops) // 2
        by_class = class_loss(student_class.unflatten(0, (-1, b)), class_target.unflatten(0, (2, b)), student_temp)
        masked_images = distributed.mean(mask.any(1).sum().float(), self.world)
        by_patch = patch_loss(student_patch, patch_target, mask, student_temp, masked_images)
        return {
            "class_loss": by_class, "patch_loss": by_patch, "loss": by_class + by_patch,
            "class_logits": class_logits, "patch_logits": patch_logits,
            "class_entropy": entropy(class_target), "patch_entropy": entropy(patch_target),
        }  # fmt: skip

    def _targets(self, logits: Tensor, center: Tensor, temperature: float) -> Tensor:
        if self.centering == "mean":
            return centered_targets(logits, center, temperature)
        return self.world.slice(sinkhorn_targets(distributed.gather(logits, self.world), temperature))

    @torch.no_grad()
    def update(self, class_logits: Tensor, patch_logits: Tensor, momentum: float) -> None:
        """After the student's step: the teacher and its centers move."""
        update_teacher(self.teacher, self.student, momentum)
        for center, logits in ((self.class_center, class_logits), (self.patch_center, patch_logits)):
            mean = distributed.mean(logits.float().flatten(0, -2).mean(0), self.world)
            update_center(center, mean, self.center_momentum)
