"""iBOT: self-distillation with an online tokenizer (Zhou et al. 2022), an extension of DINO (Caron et al. 2021).

The student encodes crops of an image, with some patches replaced by a mask token. The teacher is the moving average of
the student, and encodes the two global crops without masks. The student's class token has to match the teacher's class
token of the other crops (class loss, DINO eq. 1 and 2). The student's masked patches have to match the teacher's
patches of the same crop (patch loss, iBOT eq. 2). Centering keeps the teacher from assigning all images to one
prototype, and sharpening keeps its distributions from becoming uniform.

Axes in the shapes: g global crops, l local crops, c all crops, b images, n patches, m prototypes.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from semmae.core import distributed


class ProjectionHead(nn.Module):
    """A projection head: a three-layer MLP, then the cosine to each prototype (DINO appendix C).

    Args:
        width: width of the tokens.
        hidden: width of the hidden layers.
        bottleneck: width of the prototypes.
        prototypes: number of prototypes.
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
        """Return the cosines, in [-1, 1]."""
        return F.normalize(self.mlp(x), dim=-1) @ F.normalize(self.prototypes, dim=-1).T


class IBOTNetwork(nn.Module):
    """A ViT with a mask token and one head for both class token and patches, as in iBOT's ViT-S."""

    def __init__(self, vit: VisionTransformer, head: ProjectionHead) -> None:
        super().__init__()
        self.vit, self.head = vit, head
        self.mask_token = nn.Parameter(torch.zeros(vit.embed_dim))

    def forward(
        self, images: Float[Tensor, "b 3 H W"], mask: Bool[Tensor, "b n"] | None = None
    ) -> tuple[Float[Tensor, "b m"], Float[Tensor, "b n m"]]:
        """Return the logits of the class token and of the patches; the mask token replaces patches under `mask`."""
        x = self.vit.patch_embed(images)  # (b, h, w, d)
        if mask is not None:
            x = torch.where(mask.view(*x.shape[:3], 1), self.mask_token.to(x.dtype), x)
        x = self.vit.norm(self.vit.blocks(self.vit.norm_pre(self.vit._pos_embed(x))))
        return self.head(x[:, 0]), self.head(x[:, self.vit.num_prefix_tokens :])


def centered_targets(
    logits: Float[Tensor, "... m"], center: Float[Tensor, " m"], temperature: float
) -> Float[Tensor, "... m"]:
    """Return the teacher's distributions, centered and sharpened, without gradient."""
    return ((logits.detach().float() - center) / temperature).softmax(-1)


def sinkhorn_targets(logits: Float[Tensor, "... m"], temperature: float) -> Float[Tensor, "... m"]:
    """Return the teacher's distributions, balanced so that a batch uses all prototypes equally, without gradient.

    Three rounds of the Sinkhorn-Knopp algorithm on exp(logits / temperature), computed with logarithms (SwAV, Caron et
    al. 2020, section 3.1).
    """
    log_q = logits.detach().float().flatten(0, -2) / temperature
    for _ in range(3):
        log_q = log_q - log_q.logsumexp(0, keepdim=True)  # all prototypes get equal shares
        log_q = log_q - log_q.logsumexp(1, keepdim=True)  # each sample sums to 1
    return log_q.exp().view(logits.shape)


def cross_entropy(
    student: Float[Tensor, "... m"], target: Float[Tensor, "... m"], temperature: float
) -> Float[Tensor, "..."]:
    """Return the cross entropy of the student's sharpened distribution relative to the target, in nats."""
    return -(target * (student.float() / temperature).log_softmax(-1)).sum(-1)


def class_loss(
    student: Float[Tensor, "c b m"], target: Float[Tensor, "g b m"], temperature: float
) -> Float[Tensor, ""]:
    """Return the mean cross entropy over all pairs of a teacher's global crop and a different crop of the student.

    In both `student` and `target`, the global crops come first.
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
    num_masked_images: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Average the cross entropy over the masked patches of each image, then over the images with masked patches.

    Args:
        student: logits of the student.
        target: distributions of the teacher.
        mask: True for masked patches.
        temperature: temperature of the student.
        num_masked_images: number of images with masked patches; with several ranks, the mean over the ranks.
    """
    error = cross_entropy(student, target, temperature) * mask
    image_loss = error.sum(1) / mask.sum(1).clamp(min=1)
    return image_loss.sum() / num_masked_images.clamp(min=1e-6)  # without masked images the sum is 0


def entropy(probabilities: Float[Tensor, "... m"]) -> Float[Tensor, ""]:
    """Return the mean entropy in nats: 0 for one-hot targets, ln m for uniform ones."""
    return -(probabilities * probabilities.clamp(min=1e-12).log()).sum(-1).mean()


@torch.no_grad()
def update_center(center: Float[Tensor, " m"], mean: Float[Tensor, " m"], momentum: float) -> None:
    """Update the moving mean of the teacher's logits in place (DINO eq. 4); `mean` is the mean over a batch."""
    center.mul_(momentum).add_(mean, alpha=1 - momentum)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Update the teacher, the moving average of the student's parameters, in place."""
    torch._foreach_lerp_(list(teacher.parameters()), [p.detach() for p in student.parameters()], 1 - momentum)


class SelfDistillation(nn.Module):
    """Student, teacher and centers as one module, for checkpoints and DDP.

    Targets and centers use the batch of all ranks, so the number of processes does not change them.

    Args:
        student: the network to train.
        teacher: the moving average of the student; this class copies the student's weights into it.
        centering: `mean` subtracts a moving mean from the teacher's logits, `sinkhorn` balances each batch.
        center_momentum: momentum of the moving mean.
        world: rank and number of ranks.
    """

    class_center: Tensor
    patch_center: Tensor

    def __init__(
        self,
        student: IBOTNetwork,
        teacher: IBOTNetwork,
        *,
        centering: Literal["mean", "sinkhorn"],
        center_momentum: float,
        world: distributed.World,
    ) -> None:
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
        """Compute the losses of a step.

        Args:
            global_crops: two crops of each image: the first crops of all images, then the second crops.
            local_crops: small crops, ordered like the global crops; None if the recipe has none.
            mask: True for masked patches of the global crops.
            student_temp: temperature of the student.
            teacher_temp: temperature of the teacher.

        Returns:
            `loss`, `class_loss` and `patch_loss`; `class_entropy` and `patch_entropy` of the targets; `class_logits`
            and `patch_logits` of the teacher, for `update`.
        """
        with torch.no_grad():
            class_logits, patch_logits = self.teacher(global_crops)
        class_target = self._targets(class_logits, self.class_center, teacher_temp)
        patch_target = self._targets(patch_logits, self.patch_center, teacher_temp)
        student_class, student_patch = self.student(global_crops, mask)
        if local_crops is not None:
            student_class = torch.cat([student_class, self.student(local_crops)[0]])
        b = len(global_crops) // 2
        class_term = class_loss(student_class.unflatten(0, (-1, b)), class_target.unflatten(0, (2, b)), student_temp)
        num_masked_images = distributed.mean(mask.any(1).sum().float(), self.world)
        patch_term = patch_loss(student_patch, patch_target, mask, student_temp, num_masked_images)
        return {
            "class_loss": class_term, "patch_loss": patch_term, "loss": class_term + patch_term,
            "class_logits": class_logits, "patch_logits": patch_logits,
            "class_entropy": entropy(class_target), "patch_entropy": entropy(patch_target),
        }  # fmt: skip

    def _targets(self, logits: Tensor, center: Tensor, temperature: float) -> Tensor:
        if self.centering == "mean":
            return centered_targets(logits, center, temperature)
        return self.world.slice(sinkhorn_targets(distributed.gather(logits, self.world), temperature))

    @torch.no_grad()
    def update(self, class_logits: Tensor, patch_logits: Tensor, momentum: float) -> None:
        """Update the teacher from the student, and the centers from the teacher's logits of this step."""
        update_teacher(self.teacher, self.student, momentum)
        for center, logits in ((self.class_center, class_logits), (self.patch_center, patch_logits)):
            mean = distributed.mean(logits.float().flatten(0, -2).mean(0), self.world)
            update_center(center, mean, self.center_momentum)
