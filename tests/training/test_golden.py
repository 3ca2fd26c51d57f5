"""Compare twenty losses of a toy SemMAE run with a text file. A commit that changes them must give the reason.

`python -m tests.training.test_golden` writes the file.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from semmae.core import optim
from semmae.core.rng import numpy_generator, torch_generator
from semmae.models import mae, masking, vit
from semmae.sharding.creatures.draw import draw

GOLDEN = Path(__file__).parent / "golden.txt"
STEPS, GRID, RATIO = 20, (4, 4), 0.75


def losses() -> list[float]:
    """Train on 16 creatures of 32 pixels, with semantic masks over their true parts."""
    torch.manual_seed(0)
    creatures = [draw(0, f"train-{i:06d}", 32) for i in range(16)]
    images = vit.normalize(torch.from_numpy(np.stack([c.image for c in creatures])).permute(0, 3, 1, 2))
    labels = torch.from_numpy(np.stack([c.mask[4::8, 4::8].reshape(-1) for c in creatures]))
    encoder = vit.build({"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2})
    for name, parameter in encoder.named_parameters():  # the draws do not depend on torch's and timm's initialization
        if parameter.requires_grad and parameter.ndim > 1:
            values = numpy_generator(0, name).normal(0, 0.05, parameter.shape)
            parameter.data.copy_(torch.from_numpy(values))
    model = mae.MAE(encoder, embed_dim=16, depth=1, num_heads=2)
    for name, parameter in model.decoder.named_parameters():
        if parameter.ndim > 1:
            parameter.data.copy_(torch.from_numpy(numpy_generator(1, name).normal(0, 0.05, parameter.shape)))
    model.mask_token.data.fill_(0.01)
    optimizer = optim.adamw(model, weight_decay=0.05, betas=(0.9, 0.95))
    num_masked, history = masking.num_masked(16, RATIO), []
    for step in range(STEPS):
        curriculum_weight = masking.curriculum_weight(step / (STEPS - 1), start=0.0, end=1.0, power=2.0)
        mask = masking.semantic(labels, RATIO, curriculum_weight, generator=torch_generator(0, "mask", step))
        loss = mae.loss(model(images, mask, num_masked), images, mask, patch_size=8, norm_pix_loss=True)
        optim.set_rate(optimizer, optim.warmup_cosine(step, steps=STEPS, warmup=4, peak=3e-3, end=0.0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    return history


def test_losses_equal_the_recorded_losses():
    recorded = [float(line) for line in GOLDEN.read_text().split()]
    found = losses()
    assert found == pytest.approx(recorded, rel=1e-3)
    assert sum(found[-5:]) < sum(found[:5])


if __name__ == "__main__":
    GOLDEN.write_text("\n".join(f"{loss:.6f}" for loss in losses()) + "\n")
