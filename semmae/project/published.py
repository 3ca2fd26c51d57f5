"""The choice of a teacher: published weights if they can be loaded, else one that is trained on the images."""

import os
import urllib.request
from pathlib import Path

from semmae.core.digests import file_digest
from semmae.models.teacher import from_timm
from semmae.project.settings import PublishedTeacher

DEFAULT_MODEL = "vit_small_patch16_224.dino"
URL = "https://huggingface.co/timm/{model}/resolve/main/model.safetensors"
SECONDS = 3.0  # to wait for an answer
SIDE = 224  # pixels of the images of a published teacher, if its patches divide it
OWN = "mae"  # value of --teacher for a teacher that is trained on the images


def choose_teacher(model: str | None, weights: Path | None) -> PublishedTeacher | None:
    """Return the published teacher to use; None to train one on the images.

    Without `model`, DINO's ViT-S/16 is used if the server with timm's weights answers.

    Args:
        model: A model of timm, or `mae` for a teacher that is trained on the images.
        weights: A file with the weights of `model`.

    Raises:
        ValueError: The model is unknown, the file does not fit it, or its weights can neither be read nor downloaded.
    """
    if model == OWN:
        if weights is not None:
            raise ValueError("--teacher is mae, which is trained on your images; remove --weights, or give its model")
        return None
    if weights is not None:
        if model is None:
            raise ValueError(f"--weights needs --teacher, the timm model of the file, such as {DEFAULT_MODEL}")
        path = weights.expanduser().absolute()
        network, _ = from_timm(model, img_size=_side(model), checkpoint=path)
        return PublishedTeacher(model, (str(path), file_digest(path)), _side(model), network.patch_embed.patch_size[0])
    if model is None and not is_reachable(DEFAULT_MODEL):
        return None
    model = model or DEFAULT_MODEL
    network, _ = from_timm(model, img_size=_side(model), checkpoint=None)
    return PublishedTeacher(model, None, _side(model), network.patch_embed.patch_size[0])


def is_reachable(model: str) -> bool:
    """Return whether the server with timm's weights answers within a few seconds."""
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", ""):
        return False
    request = urllib.request.Request(URL.format(model=model), method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return answer.status == 200
    except OSError:
        return False


def _side(model: str) -> int:
    """Return the side of the images in pixels: that in the name of a model, or `SIDE`; a multiple of the patch size."""
    patch = next((int(word[5:]) for word in model.split(".")[0].split("_") if word.startswith("patch")), 16)
    return SIDE // patch * patch
