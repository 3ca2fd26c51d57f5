"""Keys of params.yaml that were renamed or removed. A file with an old name is refused with what to write instead."""

from collections.abc import Iterator
from typing import Any

EVALUATIONS = ("part_scores", "knn", "linear", "attentive", "finetune", "segment")
RECIPES = {  # section with `compute`: section that has its key shuffle_shards now
    "teacher": "mae_recipe",
    "parts": "parts.paper",
    "pretrain": "mae_recipe",
    "attentive.protocol": "attentive.protocol",
    "finetune.protocol": "finetune.protocol.recipe",
    "segment.protocol": "segment.protocol",
}

RENAMED_KEYS = {
    "teacher.health": "teacher.online_eval",
    "teacher.online_knn": "teacher.online_eval",
    "teacher.online_eval.samples": "teacher.online_eval.num_images",
    "teacher.ibot.colour": "teacher.ibot.color",
    "teacher.mae.recipe.reconstruct": "mae_recipe.decode_fraction",
    "teacher.mae.recipe.max_skips": "mae_recipe.max_skipped_steps",
    "parts.sample": "parts.num_images",
    "parts.learned.geometry": "parts.learned.position_weight",
    "parts.learned.epochs": "parts.learned.steps",
    "parts.learned.base_lr": "parts.learned.lr",
    "parts.learned.temperature": "parts.learned.initial_entropy",
    **{
        f"parts.learned.{key}": f"parts.paper.{key}"
        for key in ("warmup_epochs", "weight_decay", "flip", "blur_sigma", "decoder_width", "diversity")
    },
    "parts.learned.shuffle_shards": "parts.paper.shuffle_shards",
    "parts.learned.foreground.place": "parts.learned.foreground.center_prior",
    "parts.learned.foreground.walk": "parts.learned.foreground.diffusion_steps",
    "parts.learned.foreground.groups": "parts.learned.foreground.threshold_classes",
    "pretrain.masking.inter_part": "pretrain.masking.curriculum",
    "pretrain.online_knn": "pretrain.online_eval",
    "pretrain.online_eval.samples": "pretrain.online_eval.num_images",
    "pretrain.recipe.reconstruct": "mae_recipe.decode_fraction",
    "pretrain.recipe.max_skips": "mae_recipe.max_skipped_steps",
    "part_scores.protocol.sample": "part_scores.protocol.num_images",
    "segment.protocol.protocols": "segment.protocol.heads",
    "segment.protocol.sample": "segment.protocol.num_images",
    "report.colours": "report.colors",
    "report.film": "report.masks",
    "report.sample": "report.num_images",
    **{
        f"{stage}.protocol.{key}": f"{stage}.protocol.compute.{key}"
        for stage in ("part_scores", "knn", "linear")
        for key in ("device", "precision", "workers")
    },
    **{f"{stage}.datasets": f"evaluations.{stage}" for stage in EVALUATIONS},
    **{
        f"{section}.compute.{key}": f"{recipe}.shuffle_shards"
        for section, recipe in RECIPES.items()
        for key in ("window", "shuffle_shards")
    },
    **{f"{section}.compute.checkpoint_minutes": f"{section}.checkpoint_minutes" for section in RECIPES},
}

REMOVED_KEYS = {
    f"parts.learned.{key}": "the method learned has no decoder and no balance loss anymore"
    for key in ("target", "decoder_depth", "balance", "balance_floor", "usage", "usage_floor")
}


def find_renamed(params: dict[str, Any]) -> Iterator[str]:
    """Yield a message for each key of `params` that was renamed or removed."""
    for old, new in RENAMED_KEYS.items():
        if _has(params, old):
            *folder, name = new.split(".")
            is_renamed = old.split(".")[:-1] == folder
            yield f"{old} is now {new}; " + ("rename it" if is_renamed else f"move it to {'.'.join(folder)} as {name}")
    for old, reason in REMOVED_KEYS.items():
        if _has(params, old):
            yield f"{old} was removed: {reason}; delete it"


def _has(params: dict[str, Any], key: str) -> bool:
    section: Any = params
    for name in key.split("."):
        if not isinstance(section, dict) or name not in section:
            return False
        section = section[name]
    return True
