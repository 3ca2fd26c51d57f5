"""The params.yaml of a project: that of the repository, with the settings that were chosen for a person's images."""

import io
import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from semmae.project.image_survey import ImageSurvey
from semmae.project.mask_survey import MaskSurvey
from semmae.project.settings import Settings, count_train

REPOSITORY_FILE = Path(__file__).with_name("parameters.yaml")  # a link
HEADER = """\
# All parameters, chosen by `semmae init` for {path} (README.md tells why).
"""
DATASET = "main"


def project_params(
    settings: Settings, survey: ImageSurvey, masks: MaskSurvey | None, *, labels: bool, raw: Path
) -> str:
    """Return the text of a project's params.yaml; `raw` is its data/raw, to which paths in it are relative."""
    yaml = YAML()  # as DVC writes params.yaml, so that `dvc exp run -S` changes one line
    yaml.default_flow_style = False
    params = yaml.load(REPOSITORY_FILE)
    source = describe_source(settings, survey, masks, labels=labels, raw=raw)
    params["shards"]["datasets"] = CommentedMap(
        {DATASET: {"sources": CommentedMap({source_name(survey.path): source})}}
    )
    num_train = count_train(survey, settings.val_fraction)
    for keys, value in changes(settings, num_train, labels=labels).items():
        section = params
        *parents, last = keys.split(".")
        for key in parents:
            section = section[key]
        if last not in section and (len(parents) < 2 or parents[-1] != "recipe"):
            raise KeyError(keys)
        section[last] = value
    for stage in params["evaluations"]:
        params["evaluations"][stage] = _flow({DATASET: {}} if stage in settings.evaluations else {})
    text = io.StringIO()
    yaml.dump(params, text)
    first_comment = re.match(r"(#.*\n)*", text.getvalue())
    assert first_comment is not None
    body = text.getvalue()[first_comment.end() :]
    known = "".join(line for line in first_comment[0].splitlines(keepends=True)[1:])
    return HEADER.format(path=survey.path) + "# Most users change only these keys:\n" + known + body


def describe_source(
    settings: Settings, survey: ImageSurvey, masks: MaskSurvey | None, *, labels: bool, raw: Path
) -> dict[str, Any]:
    """Return the parameters of the source of the images."""
    path = survey.path.relative_to(raw) if survey.path.is_relative_to(raw) else survey.path
    described = None if masks is None else _flow({"folder": masks.folder, "kind": masks.kind, "names": masks.names})
    fields = {
        "kind": survey.kind, "path": str(path), "splits": None, "val_fraction": settings.val_fraction,
        "labels": labels, "masks": described,
    }  # fmt: skip
    return CommentedMap(fields)


def changes(settings: Settings, num_train: int, *, labels: bool) -> dict[str, Any]:
    """Return the values that differ from those of the repository, by key."""
    every_epochs = max(settings.epochs, settings.teacher_epochs) if labels else 0
    epochs = max(1, round(60 * 1000 / max(num_train, 1000)))
    values: dict[str, Any] = {
        "shards.writing.max_rejects": settings.max_rejects,
        "pretrain.img_size": settings.img_size,
        "pretrain.encoder": _flow(vars(settings.shape.vit)),
        "pretrain.recipe.epochs": settings.epochs,
        "mae_recipe.batch_size": settings.batch_size,
        "mae_recipe.base_lr": settings.base_lr,
        "mae_recipe.warmup_epochs": settings.warmup_epochs,
        "mae_recipe.decoder": _flow(vars(settings.shape.decoder)),
        "mae_recipe.crop.scale": _flow([0.2, 1.0]),
        "teacher.network": _flow(vars(settings.shape.vit)),
        "teacher.img_size": settings.img_size,
        "teacher.mae.recipe.epochs": max(settings.teacher_epochs, 1),
        "teacher.mae.recipe.warmup_epochs": settings.teacher_warmup_epochs,
        "parts.num_parts": settings.num_parts,
        "parts.img_size": settings.parts_img_size,
        "parts.num_images": settings.num_images,
        "parts.learned.keys": "content" if settings.published else "position",
        "parts.learned.foreground.center_prior": 1.0,
        "parts.learned.foreground.threshold_classes": 2,
        "part_scores.protocol.num_images": min(600, num_train),
        "linear.protocol.epochs": epochs,
        "linear.protocol.warmup_epochs": min(3, epochs - 1),
        "attentive.protocol.epochs": attentive_epochs(num_train),
        "attentive.protocol.warmup_epochs": min(1, attentive_epochs(num_train) - 1),
        "segment.protocol.short_side": settings.img_size,
        "segment.protocol.stride": settings.img_size,
    }  # fmt: skip
    if settings.published is not None:
        published = settings.published
        values |= {"teacher.source": "timm", "teacher.model": published.model, "teacher.img_size": published.img_size}
        if published.checkpoint is not None:
            path, sha256 = published.checkpoint
            values["teacher.checkpoint"] = _flow({"path": path, "sha256": sha256})
    for stage in ("pretrain", "teacher"):
        values[f"{stage}.online_eval.every_epochs"] = every_epochs
        values[f"{stage}.online_eval.num_images"] = min(400, num_train)
    for stage in ("pretrain", "teacher", "parts", "part_maps"):
        values[f"{stage}.compute.workers"] = settings.workers
    for stage in ("part_scores", "knn", "linear", "attentive", "finetune", "segment"):
        values[f"{stage}.protocol.compute.workers"] = settings.workers
    return values


def attentive_epochs(num_train: int) -> int:
    """Return the epochs of the attentive probe: about 200 steps of 64 images, from 1 to 20."""
    return min(20, max(1, round(200 * 64 / num_train)))


def source_name(path: Path) -> str:
    """Return a name for the source, from the name of the folder or tar."""
    return re.sub(r"\W+", "_", path.stem).strip("_") or "images"


def _flow(value: Any) -> Any:
    """Return a mapping or a list that is written on one line."""
    node = CommentedMap(value) if isinstance(value, dict) else CommentedSeq(value)
    node.fa.set_flow_style()
    return node
