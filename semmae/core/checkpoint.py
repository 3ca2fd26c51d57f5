"""Checkpoints of a run: one folder per checkpoint, with a manifest that has the digest of the state.

A new checkpoint is complete on the disk before an old one is deleted; the newest two are kept. A damaged checkpoint is
skipped with a warning. Checkpoints hold tensors, numbers and strings, and are read with `weights_only=True`.
"""

import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from semmae.core.atomic_files import atomic_write, read_json, write_json
from semmae.core.digests import file_digest

NUM_KEPT = 2


def save(folder: Path, step: int, content: dict[str, Any]) -> None:
    """Save `content` as the state after `step` steps, and delete all but the newest checkpoints."""
    name = f"step-{step:09d}"
    with atomic_write(folder / name) as temporary:
        temporary.mkdir(parents=True)
        torch.save(content, temporary / "state.pt")
        write_json(temporary / "manifest.json", {"state.pt": file_digest(temporary / "state.pt")})
    # A checkpoint of a later step is damaged: `load_latest` skipped it, and the run resumed from an earlier one.
    later = [path for path in _checkpoints(folder) if path.name > name]
    for old in later + _checkpoints(folder)[len(later) + NUM_KEPT :]:
        shutil.rmtree(old)


def load_latest(folder: Path, *, map_location: torch.device) -> dict[str, Any] | None:
    """Load the newest checkpoint that is not damaged, or return None if there is none."""
    for path in _checkpoints(folder):
        try:
            if read_json(path / "manifest.json") != {"state.pt": file_digest(path / "state.pt")}:
                raise ValueError(f"{path / 'state.pt'} does not match its manifest")
            return torch.load(path / "state.pt", map_location=map_location, weights_only=True)
        except (ValueError, OSError, RuntimeError, pickle.UnpicklingError) as error:
            print(f"warning: checkpoint skipped: {error}", file=sys.stderr)
    return None


def delete_all(folder: Path) -> None:
    """Delete the folder of a finished run with its checkpoints."""
    shutil.rmtree(folder, ignore_errors=True)


def _checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`, newest first."""
    return sorted(folder.glob("step-*"), reverse=True)
