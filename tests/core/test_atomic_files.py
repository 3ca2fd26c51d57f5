"""A file is written as a whole or not at all."""

from pathlib import Path

import pytest

from semmae.core.atomic_files import atomic_write, write_json


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_failed_write_leaves_the_previous_file(tmp_path: Path, kind: str):
    def write(path: Path, text: str) -> None:
        if kind == "folder":
            path.mkdir()
        (path if kind == "file" else path / "content").write_text(text)

    target = tmp_path / "target"
    with atomic_write(target) as temporary:
        write(temporary, "old")
    with pytest.raises(RuntimeError), atomic_write(target) as temporary:  # noqa: PT012
        write(temporary, "half of")
        raise RuntimeError
    assert (target if kind == "file" else target / "content").read_text() == "old"
    with atomic_write(target) as temporary:
        write(temporary, "new")
    assert (target if kind == "file" else target / "content").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_json_has_no_nan(tmp_path: Path):
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not (tmp_path / "x.json").exists()
