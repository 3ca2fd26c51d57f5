"""Two ranks compute what one process computes. Real processes, started by torchrun."""

import re
import signal
from typing import Any

import pandas as pd
import pytest

from semmae.core.config import load_config
from semmae.data.dataset import Reader
from stages.pretrain import PretrainConfig
from tests.killed import SIGNALED, epochs, history
from tests.project import Project

TWO = ["python", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python", "python"]


def test_two_ranks_resume_the_run_of_one_process_with_the_same_history(finished: Project, toy: Project):
    toy.run("python", "-c", SIGNALED, "7", str(int(signal.SIGKILL)), expect=-signal.SIGKILL)
    assert epochs(toy.run(*TWO, "-m", "stages.pretrain"))[0] == 2
    for one, two in zip(history(finished), history(toy), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)  # the gradients are summed in another order
        assert (two["lr"], two["curriculum_weight"]) == pytest.approx((one["lr"], one["curriculum_weight"]))


# Run pretrain with a loss that is not finite at the third step on rank 1.
LOST = """
import os, runpy
from semmae.models import mae
loss, seen = mae.loss, 0
def counted(*arguments, **keywords):
    global seen
    seen += 1
    return loss(*arguments, **keywords) * (float("nan") if (seen, os.environ["RANK"]) == (3, "1") else 1)
mae.loss = counted
runpy.run_module("stages.pretrain", run_name="__main__", alter_sys=True)
"""


def test_the_rank_whose_loss_is_not_finite_names_its_samples_and_both_ranks_continue(toy: Project):
    toy.set("pretrain.recipe.max_skipped_steps", 1)
    output = toy.run(*TWO, "-c", LOST)
    section = load_config(PretrainConfig, "pretrain", file=toy.folder / "params.yaml")
    reader, b = Reader(toy.folder / "data/shards" / section.dataset, "train"), section.recipe.batch_size
    theirs = [reader.keys[i] for i in reader.epoch_order(seed=section.seed, epoch=0)[2 * b + b // 2 : 3 * b]]
    messages = re.findall(r"^pretrain: .* at step 2.*", output, re.MULTILINE)
    assert messages == [
        f"pretrain: the loss is nan at step 2 on rank 1; its samples: {', '.join(theirs[:8])}; the step is skipped"
    ]
    assert epochs(output)[-1] == section.recipe.epochs


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("parts", {"parts.method": "paper"}),
        ("teacher", {"teacher.source": "ibot", "teacher.online_eval.every_epochs": 0}),
    ],
    ids=["parts", "ibot"],
)
def test_losses_over_a_batch_cover_the_batch_of_both_ranks(toy: Project, stage: str, changes: dict[str, Any]):
    for key, value in changes.items():
        toy.set(key, value)
    toy.stage(stage)
    alone = history(toy, stage)
    toy.run(*TWO, "-m", f"stages.{stage}")
    for one, two in zip(alone, history(toy, stage), strict=True):
        assert two == pytest.approx(one, rel=1e-3)


def test_uneven_shards_give_both_ranks_equal_steps_and_every_sample_of_val_is_scored_once(toy: Project):
    for split, numbers in (("train", (64, 65, 66)), ("val", (32,))):
        for number in numbers:
            toy.picture(split, number)
    toy.stage("shards", "toy")
    val = Reader(toy.folder / "data/shards/toy", "val")
    assert (len(Reader(val.dataset, "train")), len(val)) == (67, 33)
    toy.set("finetune.protocol.baselines", False)
    toy.set("finetune.protocol.low_shot", [])
    for name in ("drop_path", "mixup", "cutmix", "erasing"):  # each rank draws its own
        toy.set(f"finetune.protocol.recipe.{name}", 0.0)
    files = ("curves/toy/encoder/loss.tsv", "predictions/toy.tsv")
    files_read = []
    for command in (["python"], TWO):
        toy.run(*command, "-m", "stages.finetune", "toy")
        results = toy.folder / "results/finetune"
        files_read.append([pd.read_csv(results / name, sep="\t") for name in files])
    (curve, predictions), (curve_of_two, predictions_of_two) = files_read
    assert curve["epoch"].tolist() == curve_of_two["epoch"].tolist() == [1, 2]
    assert curve_of_two["loss"].tolist() == pytest.approx(curve["loss"].tolist(), rel=1e-3)
    assert predictions["key"].tolist() == predictions_of_two["key"].tolist() == val.keys
    assert predictions_of_two["confidence"].tolist() == pytest.approx(predictions["confidence"].tolist(), abs=2e-3)
