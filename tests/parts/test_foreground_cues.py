"""The cues of foreground on graphs and lines whose answer is known."""

import numpy as np
import pytest
import scipy.linalg
import torch

from semmae.parts.foreground_cues import WEAK_EDGE, first_component, normalized_cut


def test_a_graph_of_two_blocks_splits_into_its_blocks():
    block = torch.tensor([0, 0, 1, 0, 1, 0, 0, 0])
    score = normalized_cut(torch.eye(2)[block][None], threshold=0.2)[0]
    assert (score > 0).tolist() == (block == 1).tolist()  # the smaller block has the larger values of y
    y = torch.tensor([1 / 6, -1 / 2])[block]  # constant on each block, and orthogonal to the degrees
    cosine = torch.nn.functional.cosine_similarity(score, -(y - y.mean()), dim=0)
    assert cosine == pytest.approx(1, abs=1e-4)


def test_the_cut_solves_the_generalized_eigenproblem():
    tokens = torch.randn(3, 20, 4, generator=torch.Generator().manual_seed(0))
    scores = normalized_cut(tokens, threshold=0.1).numpy()
    for image, score in zip(tokens.double().numpy(), scores, strict=True):
        unit = image / np.linalg.norm(image, axis=1, keepdims=True)
        weights = np.where(unit @ unit.T > 0.1, 1, WEAK_EDGE)
        degrees = np.diag(weights.sum(1))
        y = scipy.linalg.eigh(degrees - weights, degrees)[1][:, 1]
        y = y * np.sign(score[np.abs(y).argmax()]) * np.sign(y[np.abs(y).argmax()])
        np.testing.assert_allclose(score, y - y.mean(), atol=1e-5)
        assert score[np.abs(y).argmax()] > 0


def test_a_cut_does_not_depend_on_the_batch():
    tokens = torch.randn(4, 30, 5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(normalized_cut(tokens)[2:3], normalized_cut(tokens[2:3]))


def test_the_first_component_is_the_line_of_largest_variance():
    along = torch.tensor([[0.0, 0, 0, 0, 1, 0, 0, 0, 0], [0, 0, 0, 1, 5, 0, 0, 0, 0]])  # of 3 x 3 patches
    axis = torch.tensor([0.6, -0.8, 0])
    tokens = 7 + along[:, :, None] * axis + 0.01 * torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(0))
    component = first_component(tokens, grid=(3, 3))
    torch.testing.assert_close(component.axis, axis, atol=0.02, rtol=0)
    torch.testing.assert_close(component.score(tokens), along - along.mean(), atol=0.06, rtol=0)


def test_the_border_is_background_whatever_the_sign_of_the_tokens():
    generator = torch.Generator().manual_seed(0)
    center = torch.zeros(4, 4)
    center[1:3, 1:3] = 1
    for sign in (1, -1):
        tokens = sign * center.flatten()[None, :, None] + 0.1 * torch.randn(5, 16, 2, generator=generator)
        score = first_component(tokens, grid=(4, 4)).score(tokens)
        assert ((score > 0) == (center.flatten() > 0)).all()
