"""Checkpoints of a run: a new folder per save, named in a manifest with its digest, two kept, never half of one.

A save writes, syncs and renames, and only then drops the oldest; a checkpoint that fails its manifest is skipped,
loudly, for the one before. They hold tensors, numbers and strings, read with `weights_only=True`.
"""

import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from semmae.core.atomic_files import atomic_write, read_json, write_json
from semmae.core.digests import file_digest

KEPT = 2


def save(folder: Path, step: int, content: dict[str, Any]) -> None:
    """Keep `content` as the state after `step` steps."""
    with atomic_write(folder / f"step-{step:09d}") as temporary:
        temporary.mkdir(parents=True)
        torch.save(content, temporary / "state.pt")
        write_json(temporary / "manifest.json", {"state.pt": file_digest(temporary / "state.pt")})
    later = [path for path in _saves(folder) if path.name > f"step-{step:09d}"]  # it could not be read
    for old in later + _saves(folder)[len(later) + KEPT :]:
        shutil.rmtree(old)


def latest(folder: Path, *, map_location: torch.device) -> dict[str, Any] | None:
    """The newest checkpoint that is whole, or None."""
    for path in _saves(folder):
        try:
            if read_json(path / "manifest.json") != {"state.pt": file_digest(path / "state.pt")}:
                raise ValueError(f"{path / 'state.pt'} does not match its manifest")
            return torch.load(path / "state.pt", map_location=map_location, weights_only=True)
        except (ValueError, OSError, RuntimeError, pickle.UnpicklingError) as error:
            print(f"warning: checkpoint skipped: {error}", file=sys.stderr)
    return None


def forget(folder: Path) -> None:
    """Remove a finished run's checkpoints."""
    shutil.rmtree(folder, ignore_errors=True)


def _saves(folder: Path) -> list[Path]:
    """The saves in `folder`, newest first."""
    return sorted(folder.glob("step-*"), reverse=True)
