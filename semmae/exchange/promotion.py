"""Copy encoders to `data/encoders`, so that later runs can use them as teachers.

The copy is `data/encoders/<sha256 of the weights>`, which Git and DVC ignore. A queued experiment reads it from the
main repository; see `semmae.core.paths.raw_path`.
"""

import shutil
import tempfile
from pathlib import Path

from semmae.core.atomic_files import atomic_write
from semmae.core.model_files import load_model

SUFFIXES = (".safetensors", ".json")


def promote(folder: Path, name: str, encoders: Path, *, rev: str | None = None) -> Path:
    """Copy an encoder or a trained teacher to `encoders`, unless it is already there.

    Args:
        folder: The artifact that holds the network, e.g. data/pretrain.
        name: The name of the network's files, "encoder" or "teacher".
        encoders: The folder of copied encoders.
        rev: A DVC experiment or Git commit whose network is read from DVC's cache; None: the workspace.

    Returns:
        The file with the copied weights.

    Raises:
        ValueError: The network is missing or damaged, or it is a pretrained model of timm.
    """
    with tempfile.TemporaryDirectory() as temporary:
        source = folder if rev is None else _fetch(folder, name, rev, Path(temporary))
        _, config = load_model(source, name)
        if "timm" in config:
            raise ValueError(f"{folder} holds timm's {config['timm']}, which needs no copy; set teacher.model")
        target = encoders / config["sha256"]
        if not target.exists():
            with atomic_write(target) as copy:
                copy.mkdir()
                for suffix in SUFFIXES:
                    shutil.copyfile(source / f"{name}{suffix}", copy / f"encoder{suffix}")
    return target / "encoder.safetensors"


def _fetch(folder: Path, name: str, rev: str, target: Path) -> Path:
    """Copy the files of a network at a revision from DVC's cache to `target`."""
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException

    try:
        files = DVCFileSystem(".", rev=rev)
        for suffix in SUFFIXES:
            files.get_file(str(folder / f"{name}{suffix}"), str(target / f"{name}{suffix}"))
    except (DvcException, FileNotFoundError) as error:
        raise ValueError(f"cannot fetch {folder} at {rev}: {error}; list experiments with: dvc exp show") from None
    return target
