"""The functions of part maps equal their closed forms."""

import torch

from semmae.parts.soft_maps import blur, diversity_loss


def test_diversity_loss_is_the_overlap_of_pairs():
    maps = torch.rand(2, 3, 5).softmax(1)
    pairs = sum((maps[:, i] * maps[:, j]).mean() for i in range(3) for j in range(3) if i != j)
    torch.testing.assert_close(diversity_loss(maps), pairs)
    decided = torch.nn.functional.one_hot(torch.randint(0, 3, (2, 5)), 3).transpose(1, 2).float()
    assert diversity_loss(decided) == 0


def test_blur_keeps_the_mean_and_spreads_a_point():
    maps = torch.zeros(1, 2, 7, 7)
    maps[0, 0, 3, 3] = 1
    out = blur(maps, 0.7)
    torch.testing.assert_close(out.sum(), torch.tensor(1.0))
    assert out[0, 0, 3, 3] > out[0, 0, 3, 4] > out[0, 0, 2, 2] > 0
    torch.testing.assert_close(out[0, 0], out[0, 0].T)
    assert torch.equal(blur(maps, 0.0), maps)
    flat = torch.ones(1, 2, 7, 7)
    torch.testing.assert_close(blur(flat, 1.0), flat)
