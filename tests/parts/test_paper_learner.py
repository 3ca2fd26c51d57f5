"""The paper's part learner starts from the attention of the teacher's heads, and gradients reach its part tokens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from semmae.models import vit
from semmae.models.teacher import Teacher, Tokens
from semmae.parts import paper_learner
from semmae.parts.attention_parts import AttentionParts
from semmae.parts.part_methods import load_parts, save_parts
from semmae.parts.soft_maps import diversity_loss

NETWORK = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
IMAGES = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def with_large_weights(network: vit.Network) -> vit.Network:
    """Draw larger random weights, so that the attention of the heads differs between patches."""
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network


def own_vit() -> vit.Network:
    return with_large_weights(vit.build(NETWORK))


def dinov3() -> vit.Network:
    """Return a small network with registers and rotary positions."""
    small = {"embed_dim": 32, "depth": 2, "num_heads": 4, "img_size": 32, "patch_size": 8}
    return with_large_weights(timm.create_model("vit_small_patch16_dinov3", num_classes=0, **small))


def encoded(network: Callable[[], vit.Network] = own_vit, *, class_token: bool = True) -> tuple[Teacher, Tokens]:
    """Return a random teacher and its tokens of three images."""
    torch.manual_seed(0)
    config = {"mean": vit.MEAN, "std": vit.STD, "class_token": class_token}
    teacher = Teacher(network(), config, "digest")
    return teacher, teacher.encode(IMAGES)


def learner(**changes: Any) -> paper_learner.PaperPartLearner:
    config = {
        "num_parts": 4, "grid": (4, 4), "embed_dim": 32, "background": True, "num_heads": 4, "patch_size": 8,
        "blur_sigma": 0.0, "decoder_width": 16,
    }  # fmt: skip
    return paper_learner.PaperPartLearner(config | changes)


@pytest.mark.parametrize("network", [own_vit, dinov3])
def test_before_training_the_maps_are_the_attention_of_the_heads(network: Callable[[], vit.Network]):
    _, tokens = encoded(network)
    model = learner()
    torch.testing.assert_close(model.attend(tokens), tokens.heads)
    attention = AttentionParts(model.config)
    torch.testing.assert_close(model.assign(tokens), attention.assign(tokens))
    assert torch.equal(model.assign(tokens).argmax(1), attention.assign(tokens).argmax(1))
    assert len(model.assign(tokens).argmax(1).unique()) == model.num_labels
    maps, _ = model(tokens)
    torch.testing.assert_close(maps, tokens.heads / tokens.heads.sum(1, keepdim=True))


def test_fewer_parts_than_heads_start_as_means_of_logits():
    _, tokens = encoded()
    pairs = (tokens.heads[:, :2] * tokens.heads[:, 2:]).sqrt()  # heads 0 and 2, heads 1 and 3
    torch.testing.assert_close(learner(num_parts=2).attend(tokens), pairs / pairs.sum(2, keepdim=True))


def test_more_parts_than_heads_start_with_copies_that_differ():
    _, tokens = encoded()
    attention = learner(num_parts=6).attend(tokens)
    torch.testing.assert_close(attention[:, :4], tokens.heads)
    closest = torch.cdist(attention[:, 4:].transpose(0, 1).flatten(1), tokens.heads.transpose(0, 1).flatten(1))
    assert closest.argmin(1).tolist() == [0, 1]
    assert closest.min() > 0


def test_each_head_starts_a_part_and_each_part_has_a_head():
    assert paper_learner.head_weights(3, 3).equal(torch.eye(3))
    assert paper_learner.head_weights(2, 3).tolist() == [[0.5, 0, 0.5], [0, 1, 0]]
    assert paper_learner.head_weights(3, 2).tolist() == [[1, 0], [0, 1], [1, 0]]


def test_without_a_trained_class_token_the_mean_patch_attends():
    """The mean of the queries of the patches is the query of their mean, because queries are linear."""
    teacher, tokens = encoded(class_token=False)
    _, queries, keys = vit.last_attention(teacher.network, vit.normalize(IMAGES))
    logits = queries[:, :, 1:].mean(2, keepdim=True) @ keys[:, :, 1:].transpose(2, 3)
    torch.testing.assert_close(learner().attend(tokens), logits.softmax(3).squeeze(2))


def test_gradients_of_both_losses_reach_the_part_tokens():
    _, tokens = encoded()
    model = learner(blur_sigma=0.5)
    shares, images = model(tokens)
    for loss in (diversity_loss(shares), (images - vit.normalize(IMAGES)).square().mean()):
        model.zero_grad()
        loss.backward(retain_graph=True)
        assert model.embed_query.weight.grad.abs().sum() > 0
        assert model.embed_class[-1].weight.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in model.parameters())  # or DistributedDataParallel fails


def test_patches_without_attention_have_finite_maps():
    _, tokens = encoded()
    tokens = tokens._replace(keys=tokens.keys.clone())
    tokens.keys[:, 0] = -1e3 * tokens.query  # logits so low that their attention is 0
    maps, images = learner()(tokens)
    torch.testing.assert_close(maps[:, :, 0], torch.full((3, 4), 0.25))
    assert images.isfinite().all()


def test_a_saved_learner_gives_the_same_maps(tmp_path: Path):
    _, tokens = encoded()
    model = learner(method="paper", num_parts=6, blur_sigma=0.5)
    torch.nn.init.normal_(model.embed_class[-1].weight)
    save_parts(tmp_path, model)
    again = load_parts(tmp_path)
    assert torch.equal(again.assign(tokens), model.assign(tokens))
    assert again.background == 6


def test_labels_do_not_depend_on_the_precision_of_the_caller():
    _, tokens = encoded()
    model = learner(blur_sigma=0.5)
    with torch.autocast("cpu", torch.bfloat16):
        inside = model.assign(tokens)
    assert torch.equal(inside, model.assign(tokens))
