"""Check fine-tuning: learning rates per layer, random draws, validation, low-shot training and resumed runs."""

import os
import random
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from ruamel.yaml import YAML
from timm.data import create_transform
from timm.models.vision_transformer import VisionTransformer

from semmae.core import distributed, optim
from semmae.core.compute import ComputeConfig
from semmae.core.config import load_config, read_yaml, with_overrides
from semmae.core.digests import file_digest
from semmae.data.dataset import Reader
from semmae.data.loader import batches
from semmae.data.transforms import AugmentedCrop, Crop, RandAugment, build_rand_augment
from semmae.evaluation import curve_files, scores, subsets, views
from semmae.models import classifier, vit
from semmae.runs import run
from semmae.training import finetune_loop
from tests.project import ROOT, call

CONFIG = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
ALONE = distributed.World(0, 1, torch.device("cpu"))
CROP, POLICY = Crop((0.4, 1.0), (0.75, 1.3333), 0.5), RandAugment(2, 9, 0.5)
COMPUTE = ComputeConfig("cpu", "fp32", False, 0)


def encoder() -> VisionTransformer:
    """An encoder with random weights and positions."""
    torch.manual_seed(0)
    network = vit.build(CONFIG).eval()
    for parameter in network.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return network


def built(pool: classifier.Pool = "patch_mean", *, drop_path: float = 0.0, img_size: int = 32) -> VisionTransformer:
    config = CONFIG | {"img_size": img_size}
    return classifier.from_encoder(encoder(), config, num_classes=8, pool=pool, drop_path=drop_path, seed=0)


def recipe(**changed: object) -> finetune_loop.FinetuneRecipe:
    demo = load_config(finetune_loop.FinetuneRecipe, "finetune", "protocol", "recipe", file=ROOT / "params.yaml")
    return replace(demo, **changed)


def pixels(n: int = 8) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def global_state() -> tuple:
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


# The network and its optimizer


@pytest.mark.parametrize("pool", ["patch_mean", "class"])
def test_lower_layers_have_lower_learning_rates_and_only_matrices_decay(pool):
    model, depth = built(pool), CONFIG["depth"]
    optimizer = optim.layer_decayed_adamw(model, weight_decay=0.05, layer_decay=0.65, betas=(0.9, 0.999))
    optim.set_rate(optimizer, 2.0)
    found = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    names = dict(model.named_parameters())
    assert len(found) == len(names)
    assert names["pos_embed"].requires_grad
    for name, parameter in names.items():
        kind, number = name.split(".")[0], int(name.split(".")[1]) + 1 if name.startswith("blocks") else 0
        layer = {"fc_norm": depth + 1, "head": depth + 1, "norm": depth}.get(kind, number)  # norm: timm's choice
        scale = 0.65 ** (depth + 1 - layer)
        assert found[id(parameter)]["lr"] == pytest.approx(2 * scale), name
        decays = name.endswith("weight") and "norm" not in name
        assert found[id(parameter)]["weight_decay"] == (0.05 if decays else 0), name


def test_the_classifier_is_a_timm_vit_with_the_weights_of_the_encoder():
    model = built().eval()
    timms = VisionTransformer(**CONFIG, num_classes=8, global_pool="avg", fc_norm=True).eval()
    missing, unknown = timms.load_state_dict(
        {k: v for k, v in encoder().state_dict().items() if not k.startswith("norm.")}, strict=False
    )
    assert set(missing) == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    assert not unknown
    timms.head.load_state_dict(model.head.state_dict())
    images = vit.normalize(pixels())
    assert torch.equal(model(images), timms(images))
    assert float(model.head.weight.detach().std()) == pytest.approx(2e-5, rel=0.1)


def test_the_class_token_is_read_after_the_encoders_norm():
    model, images = built("class").eval(), vit.normalize(pixels())
    assert torch.allclose(model(images), model.head(vit.encode_tokens(encoder(), images)[:, 0]), atol=1e-7)


def test_another_image_size_resamples_the_positions_as_the_encoder_does():
    model = built("class", img_size=48).eval()
    images = vit.normalize(torch.nn.functional.interpolate(pixels(), size=48))
    assert model.pos_embed.shape[1] == 1 + 6 * 6
    assert torch.allclose(vit.encode_tokens(model, images), vit.encode_tokens(encoder(), images), atol=1e-6)
    with pytest.raises(ValueError, match="img_size is 44; the encoder needs a multiple of its patch size 8"):
        built(img_size=44)


def test_stochastic_depth_is_active_only_in_training():
    model, images = built(drop_path=0.5), vit.normalize(pixels())
    model.head.weight.data.normal_()
    still = built()
    still.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(images), still.eval()(images))
    assert not torch.allclose(model.train()(images), still.train()(images))


# Random draws


def test_rand_augment_equals_timms_rand_augment(toy_dataset):
    ours = build_rand_augment(POLICY, 32)
    theirs = create_transform(32, is_training=True, auto_augment="rand-m9-mstd0.5-inc1", interpolation="bicubic")
    theirs = next(step for step in theirs.transforms if type(step) is type(ours))
    assert [op.kwargs for op in ours.ops] == [op.kwargs for op in theirs.ops]
    assert [op.hparams for op in ours.ops] == [op.hparams for op in theirs.ops]
    assert [(op.name, op.magnitude, op.prob) for op in ours.ops] == [(o.name, o.magnitude, o.prob) for o in theirs.ops]
    assert ours.num_layers == theirs.num_layers == 2


def test_the_strongest_policy_draws_every_operation(toy_dataset):
    """At magnitude 10, timm posterizes to 0 bits, which Pillow refuses."""
    reader = Reader(toy_dataset, "train")
    view = AugmentedCrop(0, CROP, RandAugment(16, 10, 0.0), 32)
    for epoch in range(3):
        assert view(reader, 0, epoch)["image"].shape == (3, 32, 32)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_is_a_function_of_seed_epoch_and_key(toy_dataset, workers):
    reader, view = Reader(toy_dataset, "train"), AugmentedCrop(3, CROP, POLICY, 32)
    expected = np.stack([view(reader, i, 5)["image"] for i in range(12)])
    assert not np.array_equal(expected[0], view(reader, 0, 6)["image"])
    assert not np.array_equal(expected[0], AugmentedCrop(4, CROP, POLICY, 32)(reader, 0, 5)["image"])
    random.seed(9)
    np.random.seed(9)
    torch.manual_seed(9)
    before = global_state()
    load = partial(view, epoch=5)
    order = np.arange(12)[::-1]
    found = torch.cat([b["image"] for b in batches(reader, order, load, batch_size=4, workers=workers)])
    assert np.array_equal(found.numpy()[::-1], expected)
    assert global_state() == before


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_a_target_has_the_share_of_each_class_in_the_image(mixup, cutmix):
    """Class 0 is black and class 1 white, so an image's brightness is its share of class 1."""
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 32, 32)
    own_recipe = recipe(mixup=mixup, cutmix=cutmix, label_smoothing=0.0)
    shares = []
    for step in range(20):
        found, targets = finetune_loop.mix_images(
            own_recipe, images, torch.tensor([0, 1]), 3, seed=0, step=step, rank=0
        )
        bright = (found * torch.tensor(vit.STD).view(3, 1, 1) + torch.tensor(vit.MEAN).view(3, 1, 1)).mean((1, 2, 3))
        assert torch.allclose(targets[:, 1], bright, atol=1e-5)
        assert torch.allclose(targets.sum(1), torch.ones(2))
        shares.append(float(bright[0]))
    assert len(set(shares)) > 5


def test_without_mixup_the_target_is_the_smoothed_label():
    images, labels = pixels(3), torch.tensor([2, 0, 1])
    own_recipe = recipe(mixup=0.0, cutmix=0.0, label_smoothing=0.1, erasing=0.0)
    found, targets = finetune_loop.mix_images(own_recipe, images, labels, 4, seed=0, step=0, rank=0)
    assert torch.equal(found, vit.normalize(images))
    assert torch.allclose(targets, 0.9 * torch.eye(4)[labels] + 0.1 / 4)


def test_mixing_depends_on_seed_step_and_rank_and_leaves_global_generators_unchanged():
    labels, own_recipe = torch.arange(8), recipe(mixup=0.8, cutmix=1.0, erasing=0.5)
    drawn = []
    for number, step, rank in ((0, 1, 0), (1, 1, 0), (2, 2, 0), (3, 1, 1)):
        torch.manual_seed(number)
        random.seed(number)
        images, before = pixels(), global_state()
        drawn.append(finetune_loop.mix_images(own_recipe, images, labels, 8, seed=0, step=step, rank=rank))
        assert global_state()[1:] == before[1:]  # the shape checker draws from `random`
    (x, y), (again, same), (other, _), (elsewhere, mixed_alike) = drawn
    assert torch.equal(x, again)
    assert torch.equal(y, same)
    assert not torch.equal(x, other)
    assert not torch.equal(x, elsewhere)  # other rectangles,
    assert torch.equal(y, mixed_alike)  # but all ranks mix by the same share


def test_erasing_replaces_rectangles_of_some_images():
    own_recipe = recipe(mixup=0.0, cutmix=0.0, erasing=0.5)
    images = pixels(200)
    found, _ = finetune_loop.mix_images(
        own_recipe, images, torch.zeros(200, dtype=torch.long), 2, seed=0, step=0, rank=0
    )
    changed = (found != vit.normalize(images)).any(1)
    assert 0.35 < float(changed.flatten(1).any(1).float().mean()) < 0.65
    share = changed.flatten(1).float().mean(1)
    assert float(share.max()) < 0.36  # timm's largest rectangle is a third


# Training and scoring


def test_the_dataset_limits_the_batch_size_which_is_even_with_mixup():
    two = distributed.World(0, 2, torch.device("cpu"))
    plain, pairs = recipe(batch_size=64, mixup=0.0, cutmix=0.0), recipe(batch_size=64, mixup=0.8)
    assert [finetune_loop.batch_size(plain, n, ALONE) for n in (100, 64, 63, 1)] == [64, 64, 63, 1]
    assert [finetune_loop.batch_size(pairs, n, two) for n in (100, 63, 7)] == [64, 60, 4]
    with pytest.raises(
        ValueError, match=r"batch_size is 63; expected a multiple of 2, for 1 process\(es\), and pairs for mixup"
    ):
        finetune_loop.batch_size(replace(pairs, batch_size=63), 100, ALONE)
    with pytest.raises(ValueError, match="3 training sample"):
        finetune_loop.batch_size(pairs, 3, two)


def test_an_epoch_of_weighted_sources_limits_the_batch_size(toy_dataset, tmp_path):
    few = Reader(toy_dataset, "train").select(np.arange(10))
    few.samples = replace(few.samples, weight=np.full(10, 0.5))
    validation = finetune_loop.Validation(few, img_size=32, batch_size=8, every_epochs=0, compute=COMPUTE, world=ALONE)
    own_recipe = recipe(epochs=1, batch_size=64, warmup_epochs=0, ema_decay=None, mixup=0.0, cutmix=0.0)
    with run.Run("finetune", ALONE, out=tmp_path, params=own_recipe, inputs=[], checkpoint_minutes=5) as training_run:
        finetune_loop.finetune(
            own_recipe,
            built(),
            reader=few,
            seed=0,
            compute=COMPUTE,
            world=ALONE,
            run=training_run,
            validation=validation,
        )
    assert [row["epoch"] for row in training_run.history] == [1]


def test_validation_scores_the_average_of_the_weights(toy_dataset, tmp_path):
    reader = Reader(toy_dataset, "train").select(np.arange(8))
    validation = finetune_loop.Validation(
        reader, img_size=32, batch_size=8, every_epochs=0, compute=COMPUTE, world=ALONE
    )  # fmt: skip
    model, first = built(), built().state_dict()
    own_recipe = recipe(epochs=1, batch_size=8, warmup_epochs=0, ema_decay=0.75)
    with run.Run("finetune", ALONE, out=tmp_path, params=own_recipe, inputs=[], checkpoint_minutes=5) as training_run:
        averaged = finetune_loop.finetune(
            own_recipe,
            model,
            reader=reader,
            seed=0,
            compute=COMPUTE,
            world=ALONE,
            run=training_run,
            validation=validation,
        )
    for name, value in averaged.state_dict().items():
        assert torch.allclose(value, 0.75 * first[name] + 0.25 * model.state_dict()[name], atol=1e-6), name
    assert not torch.equal(first["blocks.0.attn.qkv.weight"], model.state_dict()["blocks.0.attn.qkv.weight"])
    assert torch.equal(validation.last, validation.predict(averaged))
    assert "val_top1" in training_run.history[-1]


def test_ranks_split_val_and_predict_each_sample_once_in_order(toy_dataset, monkeypatch):
    reader, model = Reader(toy_dataset, "val").select(np.arange(13)), built()
    model.head.weight.data.normal_(std=1.0)
    options = {"img_size": 32, "batch_size": 4, "every_epochs": 0, "compute": COMPUTE}
    alone = finetune_loop.Validation(reader, world=ALONE, **options).predict(model)
    assert torch.allclose(alone.sum(1), torch.ones(13))
    rows_of_ranks: dict[int, torch.Tensor] = {}

    def gather(rows: torch.Tensor, world: distributed.World) -> torch.Tensor:
        rows_of_ranks[world.rank] = rows
        return torch.cat([rows_of_ranks.get(rank, torch.zeros_like(rows)) for rank in range(world.size)])

    monkeypatch.setattr(distributed, "gather", gather)
    for rank in range(3):
        probabilities = finetune_loop.Validation(
            reader, world=distributed.World(rank, 3, ALONE.device), **options
        ).predict(model)
    assert torch.allclose(probabilities, alone, atol=1e-6)


# The stage


@pytest.fixture
def project(tmp_path: Path, toy_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with an encoder and toy parameters."""
    monkeypatch.chdir(tmp_path)
    Path("data/shards").mkdir(parents=True)
    Path("data/shards/toy").symlink_to(toy_dataset)
    vit.save(Path("data/pretrain"), encoder(), CONFIG)
    section = YAML(typ="safe").load(ROOT / "tests/toy/params.yaml")["finetune"]
    section["protocol"]["recipe"] |= {"epochs": 3, "ema_decay": 0.9}
    params = {"evaluations": {"finetune": {"toy": {}, "gone": {}}}, "finetune": section}
    YAML().dump(params, tmp_path / "params.yaml")
    return tmp_path


KEPT = ("toy.json", "curves/toy/encoder/loss.tsv", "curves/toy/2_per_class/loss.tsv", "predictions/toy.tsv")


def change(**keys: object) -> None:
    content = read_yaml(Path("params.yaml"))
    content["finetune"]["protocol"] |= keys
    YAML().dump(content, Path("params.yaml"))


def killed_at(step: int) -> None:
    """Run the stage in a process that kills itself at the given step, counted over all trainings."""
    record, seen = run.Run.record, 0

    def counted(self: run.Run, **values: torch.Tensor | float) -> None:
        nonlocal seen
        seen += 1
        if seen == step:
            os.kill(os.getpid(), signal.SIGKILL)
        record(self, **values)

    if (child := os.fork()) == 0:
        run.Run.record = counted
        call("finetune", "toy")
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def test_the_stage_writes_its_results_and_a_resumed_run_writes_the_same(project, state_root, capsys):
    call("finetune", "toy")
    result = scores.read(Path("results/finetune/toy.json"))
    assert set(result.encoder) == {"top1", "top5", "per_class", "top1_se"}
    assert {name: set(metrics) for name, metrics in result.baselines.items()} == {"untrained": {"top1", "top1_se"}}
    assert set(result.low_shot) == {"2_per_class"}
    for line, top1 in ("encoder", result.encoder["top1"]), ("untrained", result.baselines["untrained"]["top1"]):
        found = curve_files.read(Path("results/finetune/curves/toy"), line)
        assert list(found) == ["loss", "lr", "val_top1"]
        assert [epoch for epoch, _ in found["loss"]] == [1, 2, 3]
        assert found["val_top1"][-1] == (3, top1)
    assert not list((state_root / "runs").glob("*"))

    table = pd.read_csv("results/finetune/predictions/toy.tsv", sep="\t")
    val = Reader(Path("data/shards/toy"), "val")
    assert table["key"].tolist() == val.keys
    assert table["actual"].tolist() == [val.class_names[label] for label in val.labels]
    assert (table["actual"] == table["predicted"]).mean() == result.encoder["top1"]
    model, config = classifier.load(Path("data/finetune/toy"))
    view = views.CenterView(config["img_size"])
    shares = model(vit.normalize(torch.from_numpy(view(val, 3)["image"])[None])).softmax(1)[0]
    assert table["predicted"][3] == config["class_names"][int(shares.argmax())]
    assert table["confidence"][3] == pytest.approx(float(shares.max()), abs=1e-4)

    digest = file_digest(Path("data/finetune/toy/classifier.safetensors"))
    written = [Path(f"results/finetune/{name}").read_text() for name in KEPT]
    Path("data/finetune/toy/classifier.safetensors").unlink()
    killed_at(10)
    assert not Path("data/finetune/toy/classifier.safetensors").exists()
    capsys.readouterr()
    call("finetune", "toy")
    epochs = [line.split("/")[0] for line in capsys.readouterr().err.splitlines() if line.startswith("epoch ")]
    # Two trainings are resumed, one is new.
    assert epochs == [f"epoch {epoch}" for epoch in (3, 2, 3, 1, 2, 3)]
    assert file_digest(Path("data/finetune/toy/classifier.safetensors")) == digest
    assert written == [Path(f"results/finetune/{name}").read_text() for name in KEPT]


def test_low_shot_training_uses_only_its_seeded_subset(project, monkeypatch):
    """Each training starts from the pretrained encoder, and the seed determines its subset."""
    from stages import finetune

    reader, trained, learned = Reader(Path("data/shards/toy"), "train"), finetune.train_classifier, []

    def recorded(protocol, network, config, *, train, **options):
        learned.append((train.keys, [p.sum().item() for p in network.parameters()]))
        return trained(protocol, network, config, train=train, **options)

    monkeypatch.setattr(finetune, "train_classifier", recorded)
    change(low_shot=[{"share": 0.01}, {"share": 0.5}, {"per_class": 2}], baselines=False)
    for _ in range(2):
        call("finetune", "toy")
    shots = (subsets.Shots(share=0.01), subsets.Shots(share=0.5), subsets.Shots(per_class=2))
    expected = [[reader.keys[i] for i in subsets.low_shot(reader.labels, one, seed=0)] for one in shots]
    assert [keys for keys, _ in learned] == 2 * [reader.keys, *expected]
    assert len({tuple(weights) for _, weights in learned}) == 1
    assert list(scores.read(Path("results/finetune/toy.json")).low_shot) == ["1_percent", "50_percent", "2_per_class"]
    change(seed=1)
    call("finetune", "toy")
    assert learned[-1][0] != expected[-1]


def test_a_dataset_can_override_epochs_rate_and_shots():
    from stages import finetune

    section = load_config(finetune.FinetuneConfig, "finetune", file=ROOT / "tests/toy/params.yaml")
    recipe = finetune.FinetuneRecipeOverrides(epochs=7, base_lr=1e-5)
    own = with_overrides(section.protocol, finetune.FinetuneOverrides(recipe=recipe, low_shot=[]))
    assert (own.recipe.epochs, own.recipe.base_lr, own.low_shot) == (7, 1e-5, [])
    assert with_overrides(section.protocol, finetune.FinetuneOverrides()) == section.protocol


@pytest.mark.parametrize(
    ("arguments", "changed", "sentence"),
    [
        (["tyo"], {}, "finetune has no dataset 'tyo'; params.yaml has toy, gone"),
        (["gone"], {}, "data/shards/gone is not a dataset; expected one of: toy. To write another one, run: "),
        (["toy"], {"img_size": 36}, "img_size is 36; the encoder needs a multiple of its patch size 8"),
        (["toy"], {"pool": "both"}, "finetune.protocol.pool is 'both'; expected one of 'class' or 'patch_mean'"),
    ],
)
def test_invalid_settings_give_an_error_of_one_line(project, capsys, arguments, changed, sentence):
    change(**changed)
    with pytest.raises(SystemExit):
        call("finetune", *arguments)
    assert sentence in capsys.readouterr().err
    assert not Path("results").exists()
