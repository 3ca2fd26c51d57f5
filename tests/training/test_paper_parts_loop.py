"""The training of the paper's part learner lowers its loss, and a resumed run ends with the same bits."""

from pathlib import Path

import pytest
import torch

from semmae.core import distributed
from semmae.core.compute import ComputeConfig
from semmae.data.dataset import Reader
from semmae.models import vit
from semmae.models.teacher import Teacher
from semmae.parts.paper_learner import PaperPartLearner
from semmae.runs.run import Run
from semmae.training.paper_parts_loop import PaperLearnerConfig, train_paper_learner

ALONE = distributed.World(0, 1, torch.device("cpu"))
COMPUTE = ComputeConfig(device="cpu", precision="fp32", compile=False, workers=0)
RECIPE = PaperLearnerConfig(
    epochs=4, batch_size=16, base_lr=0.03, warmup_epochs=1, weight_decay=0.0, flip=0.5,
    blur_sigma=0.5, decoder_width=16, diversity=0.1, shuffle_shards=None,
)  # fmt: skip


def trained(shards: Path) -> tuple[PaperPartLearner, list[dict[str, float]]]:
    """Return a part learner and the history of its training on creatures of 32 pixels, two steps per epoch."""
    torch.manual_seed(0)
    network = vit.build({"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2})
    teacher = Teacher(network, {"mean": vit.MEAN, "std": vit.STD, "class_token": True}, "digest")
    model = PaperPartLearner(
        {
            "num_parts": 3, "grid": (4, 4), "embed_dim": 32, "background": True, "num_heads": 2, "patch_size": 8,
            "blur_sigma": 0.5, "decoder_width": 16,
        }
    )  # fmt: skip
    with Run("parts", ALONE, out=shards, params=RECIPE, inputs=[], checkpoint_minutes=60) as run:
        train_paper_learner(
            RECIPE, model, teacher, images=Reader(shards, "train"), img_size=32, seed=0, compute=COMPUTE, world=ALONE,
            run=run,
        )  # fmt: skip
    return model, run.history


def test_a_stopped_run_is_resumed_and_ends_with_the_same_bits(toy_dataset: Path, monkeypatch: pytest.MonkeyPatch):
    model, history = trained(toy_dataset)
    assert history[-1]["loss"] < 0.95 * history[0]["loss"]
    assert history[-1]["loss"] == pytest.approx(history[-1]["reconstruction"] + 0.1 * history[-1]["diversity"])

    record, steps = Run.record, []

    def fail_in_the_sixth_step(run: Run, **values: torch.Tensor) -> None:
        steps.append(values)
        if len(steps) == 6:
            raise RuntimeError("stopped")
        record(run, **values)

    monkeypatch.setattr(Run, "record", fail_in_the_sixth_step)
    with pytest.raises(RuntimeError, match="stopped"):
        trained(toy_dataset)
    monkeypatch.setattr(Run, "record", record)
    resumed, resumed_history = trained(toy_dataset)
    assert resumed_history == history
    for name, value in model.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
