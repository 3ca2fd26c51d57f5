"""Encoders kept for later: as the teacher of another run, whatever becomes of the run that they come from.

`promote` copies an encoder, or a teacher that was learned here, from the workspace, or from any experiment or commit
that DVC has cached, to data/encoders/<sha256 of its weights>. Git and DVC leave that folder alone, so a queued
experiment finds it in the main repository as it finds data/raw.
"""

import shutil
import tempfile
from pathlib import Path

from semmae.core.atomic_files import atomic_write
from semmae.core.model_files import load_model

SUFFIXES = (".safetensors", ".json")


def promote(folder: Path, name: str, encoders: Path, *, rev: str | None = None) -> Path:
    """Copy the network `name` in `folder` of `rev` (None: the workspace) into `encoders`; the file of its weights.

    One that is there already is left as it is. Raises ValueError where there is none, a damaged one, or one of timm's.
    """
    with tempfile.TemporaryDirectory() as temporary:
        found = folder if rev is None else _fetched(folder, name, rev, Path(temporary))
        _, config = load_model(found, name)
        if "timm" in config:
            raise ValueError(f"{folder} holds {config['timm']} of timm; name it in teacher.model instead")
        kept = encoders / config["sha256"]
        if not kept.exists():
            with atomic_write(kept) as copy:
                copy.mkdir()
                for suffix in SUFFIXES:
                    shutil.copyfile(found / f"{name}{suffix}", copy / f"encoder{suffix}")
    return kept / "encoder.safetensors"


def _fetched(folder: Path, name: str, rev: str, to: Path) -> Path:
    """The network as it was in `rev`, an experiment's name or what Git calls a commit, out of DVC's cache."""
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException

    try:
        files = DVCFileSystem(".", rev=rev)
        for suffix in SUFFIXES:
            files.get_file(str(folder / f"{name}{suffix}"), str(to / f"{name}{suffix}"))
    except (DvcException, FileNotFoundError) as error:
        raise ValueError(f"{folder} of {rev} is not to be had: {error}; dvc exp show lists what there is") from None
    return to
