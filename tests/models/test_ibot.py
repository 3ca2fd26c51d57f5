"""Compare iBOT's losses with explicit loops, and its updates with manual computation."""

import math

import pytest
import torch

from semmae.core import distributed
from semmae.models import ibot, vit

ALONE = distributed.World(0, 1, torch.device("cpu"))
CONFIG = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}


def network() -> ibot.IBOTNetwork:
    return ibot.IBOTNetwork(vit.build(CONFIG), ibot.ProjectionHead(32, hidden=16, bottleneck=8, prototypes=6))


def model(centering: str = "mean") -> ibot.SelfDistillation:
    torch.manual_seed(0)
    return ibot.SelfDistillation(network(), network(), centering=centering, center_momentum=0.9, world=ALONE)


def cross_entropy(p: torch.Tensor, logits: torch.Tensor, temperature: float) -> float:
    q = torch.exp(logits / temperature)
    q = q / q.sum()
    return -sum(float(p[i]) * math.log(float(q[i])) for i in range(len(p)))


def test_class_loss_is_the_mean_over_pairs_of_different_crops():
    torch.manual_seed(0)
    student, target = torch.randn(4, 3, 6), torch.randn(2, 3, 6).softmax(-1)
    pairs = [
        cross_entropy(target[j, b], student[i, b], 0.1) for j in range(2) for i in range(4) for b in range(3) if i != j
    ]
    assert float(ibot.class_loss(student, target, 0.1)) == pytest.approx(sum(pairs) / len(pairs), rel=1e-5)


def test_patch_loss_averages_masked_patches_with_equal_weight_per_image():
    torch.manual_seed(0)
    student, target = torch.randn(3, 4, 6), torch.randn(3, 4, 6).softmax(-1)
    mask = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 0]]).bool()
    images = [
        sum(cross_entropy(target[b, n], student[b, n], 0.1) for n in range(4) if mask[b, n]) / int(mask[b].sum())
        for b in (0, 2)
    ]
    assert float(ibot.patch_loss(student, target, mask, 0.1, torch.tensor(2.0))) == pytest.approx(
        sum(images) / 2, rel=1e-5
    )


def test_patch_loss_without_masked_patches_is_0():
    student, target, mask = torch.randn(2, 4, 6), torch.randn(2, 4, 6).softmax(-1), torch.zeros(2, 4).bool()
    loss = ibot.patch_loss(student, target, mask, 0.1, torch.tensor(0.0))
    assert float(loss) == 0


def test_entropy_of_uniform_and_of_one_hot():
    assert float(ibot.entropy(torch.full((5, 6), 1 / 6))) == pytest.approx(math.log(6))
    assert float(ibot.entropy(torch.eye(6))) == pytest.approx(0, abs=1e-6)


def test_centering_subtracts_the_mean_before_the_softmax():
    logits = torch.randn(5, 6)
    center = torch.zeros(6)
    ibot.update_center(center, logits.mean(0), 0.9)
    torch.testing.assert_close(center, 0.1 * logits.mean(0))
    torch.testing.assert_close(ibot.centered_targets(logits, center, 0.5), ((logits - center) / 0.5).softmax(-1))


def test_sinkhorn_targets_use_prototypes_equally_and_sum_to_1():
    logits = torch.randn(50, 6) + torch.tensor([3.0, 0, 0, 0, 0, 0])
    q = ibot.sinkhorn_targets(logits, 1.0)
    torch.testing.assert_close(q.sum(1), torch.ones(50))
    torch.testing.assert_close(q.sum(0), torch.full((6,), 50 / 6), rtol=0.05, atol=0)
    assert (logits.argmax(1) == 0).float().mean() > 0.8  # before balancing, one prototype wins most samples
    p = (logits - 7).exp()  # the textbook form: alternate scaling of rows and columns
    for _ in range(3):
        p = p / p.sum(0, keepdim=True)
        p = p / p.sum(1, keepdim=True)
    torch.testing.assert_close(q, p)


def test_the_teacher_copies_the_student_then_follows_by_momentum_without_gradient():
    both = model()
    for mine, theirs in zip(both.student.parameters(), both.teacher.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    with torch.no_grad():
        both.student.mask_token += 1
    crops, mask = torch.randn(4, 3, 32, 32), torch.rand(4, 16) < 0.5
    out = both(crops, torch.randn(4, 3, 16, 16), mask, student_temp=0.1, teacher_temp=0.04)
    out["loss"].backward()
    assert all(p.grad is None for p in both.teacher.parameters())
    assert both.student.mask_token.grad is not None
    both.update(out["class_logits"], out["patch_logits"], 0.99)
    torch.testing.assert_close(both.teacher.mask_token, torch.full((32,), 0.01))


def test_masked_pixels_do_not_reach_the_student():
    net = network().eval()
    images, mask = torch.randn(1, 3, 32, 32), torch.ones(1, 16).bool()
    with torch.no_grad():
        a, b = net(images, mask)[0], net(torch.randn(1, 3, 32, 32), mask)[0]
    assert torch.equal(a, b)


def test_logits_are_cosines():
    out = network()(torch.randn(2, 3, 32, 32))[0]
    assert out.abs().max() <= 1 + 1e-5


@pytest.mark.parametrize("centering", ["mean", "sinkhorn"])
def test_self_distillation_learns_to_distinguish_two_pictures(centering):
    """The teacher assigns noisy crops of one picture to one prototype, and the two pictures to different ones."""
    both = model(centering)
    optimizer = torch.optim.AdamW(both.student.parameters(), lr=5e-4)
    pictures = torch.randn(2, 3, 32, 32)
    for _ in range(150):
        crops = pictures.repeat(2, 1, 1, 1) + 0.1 * torch.randn(4, 3, 32, 32)
        out = both(crops, None, torch.rand(4, 16) < 0.3, student_temp=0.1, teacher_temp=0.05)
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        both.update(out["class_logits"], out["patch_logits"], 0.98)
    winners = both.teacher(crops)[0].sub(both.class_center).argmax(1)
    assert winners[0] == winners[2]
    assert winners[1] == winners[3]
    assert winners[0] != winners[1]
    assert out["class_entropy"] < 1.05 * math.log(3)  # two pictures share six prototypes: at most three each
