"""Every input of `troublesome` has its expected result: no crash, no hang, no silent loss."""

import os
import re
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from semmae.data.dataset import Reader
from semmae.sharding import shard_writer
from semmae.sharding.sources.source_item import Blob, printable
from semmae.sharding.sources.sources import AnySource, FolderMasks, Tree, WebDataset
from semmae.sharding.sources.webdataset import MemberLabels
from tests import troublesome
from tests.troublesome import WIDE, Fate

NOBODY = 65534  # a user without rights
DEADLINE = 120  # seconds, for one file on a slow machine
ALONE = {"splits": None, "val_fraction": None, "labels": False, "masks": None}
MASKS = FolderMasks(folder="masks", kind="foreground", names=["background", "animal"])
LABELS = MemberLabels(member="json", field="label", names=None)
END = bytes(1024)  # of a tar


class Hung(BaseException):
    """Not an Exception, so that no code rejects a file because of it."""


@pytest.fixture(autouse=True)
def deadline() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(DEADLINE)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def folder(root: Path, **files: bytes) -> Path:
    """A folder of pictures named as the keywords; `masks` has that of `masked`."""
    (root / "masks").mkdir(parents=True)
    for name, data in ({"fine": troublesome.PNG, "masked": troublesome.PNG} | files).items():
        (root / f"{name}.png").write_bytes(data)
    (root / "masks/masked.png").write_bytes(troublesome.encoded(troublesome.INDICES))
    return root


def tree(path: Path, **changes) -> Tree:
    return Tree(kind="tar" if path.is_file() else "folder", path=str(path), **(ALONE | changes))


def web(root: Path, samples: bytes, *, in_place: bool, labels: MemberLabels | None = None) -> WebDataset:
    root.mkdir(exist_ok=True)
    (root / "0.tar").write_bytes(samples + END)
    given = {"val_fraction": None, "labels": labels, "masks": None, "in_place": in_place}
    return WebDataset(kind="webdataset", path=str(root), shards={"train": "*.tar"}, **given)


def fates(out: Path, source: AnySource, **changes) -> dict[str, Fate]:
    """Write a dataset, read its samples, and return the result of every input."""
    given = {"seed": 0, "short_side": None, "samples_per_shard": 100, "max_rejects": 0.999, "workers": 0} | changes
    inputs = shard_writer.write(out, {"s": source}, **given)["sources"]["s"]["inputs"]
    rows, rejects = (pq.read_table(out / f"{name}.parquet").to_pylist() for name in ("index", "rejected"))
    assert len(rows) + len(rejects) == inputs
    reader, met = Reader(out), {row["source"][2:]: row["reason"] for row in rejects}
    for i, row in enumerate(rows):
        height, width, _ = reader.image(i).shape
        assert (width, height) == (row["width"], row["height"])
        assert (mask := reader.mask(i)) is None or mask.shape == (height, width)
        assert re.fullmatch("[A-Za-z0-9_-]{1,80}", row["key"])
        met[row["source"][2:]] = width, height
    assert len(met) == inputs
    return met


def check(met: dict[str, Fate], expected: dict[str, Fate]) -> None:
    """Compare results; a reason may be longer than the expected one."""
    results = {
        path: expected[path] if isinstance(fate, str) and fate.startswith(str(expected.get(path))) else fate
        for path, fate in met.items()
    }
    assert results == {path: fate for path, fate in expected.items() if fate is not None}


def test_there_are_enough_kinds():
    tables = ["IMAGES", "MASKS", "NAMES", "FOLDERS", "MEMBERS", "SAMPLES", "TARS"]
    assert sum(len(getattr(troublesome, table)) for table in tables) >= 80


@pytest.mark.parametrize("name", troublesome.IMAGES)
def test_images_copied_and_in_place(name, tmp_path):
    data, fate = troublesome.IMAGES[name]
    source = tree(folder(tmp_path / "set", picture=data), masks=MASKS)
    check(fates(tmp_path / "copied", source), {"fine.png": WIDE, "masked.png": WIDE, "picture.png": fate})
    samples = troublesome.shard("fine", png=troublesome.PNG) + troublesome.shard("picture", png=data)
    source = web(tmp_path / "web", samples, in_place=True)
    check(fates(tmp_path / "in place", source), {"0.tar/fine.png": WIDE, "0.tar/picture.png": fate})


@pytest.mark.parametrize("short_side", [None, 16])
def test_images_together_in_a_tar(short_side, tmp_path):
    """The result of an image depends neither on the other images nor, unless it is larger, on a resize."""
    members = (troublesome.member(name.replace("/", "_"), data) for name, (data, _) in troublesome.IMAGES.items())
    (tmp_path / "set.tar").write_bytes(b"".join(members) + END)
    expected = {name: fate for name, (_, fate) in troublesome.IMAGES.items()}
    if short_side:
        expected["JPEG of many scans"] = (16, 16)
    check(fates(tmp_path / "out", tree(tmp_path / "set.tar"), short_side=short_side), expected)


@pytest.mark.parametrize("name", troublesome.MASKS)
def test_masks(name, tmp_path):
    data, fate = troublesome.MASKS[name]
    source = tree(folder(tmp_path / "set"), masks=MASKS)
    if data is not None:
        (tmp_path / "set/masks/fine.png").write_bytes(data)
    check(fates(tmp_path / "out", source), {"fine.png": fate, "masked.png": WIDE})


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_names(kind, tmp_path):
    names = {os.fsdecode(name): fate for name, fate in troublesome.NAMES.items()}
    if kind == "tar":
        (tmp_path / "set").write_bytes(b"".join(map(troublesome.member, troublesome.NAMES)) + END)
    else:
        (tmp_path / "set").mkdir()
        for name in names:
            (tmp_path / "set" / name).write_bytes(troublesome.PNG)
    met = fates(tmp_path / "out", tree(tmp_path / "set"))
    check(met, {printable(name): fate for name, fate in names.items()})
    keys = [key.lower() for key in Reader(tmp_path / "out").keys]
    assert len(keys) == len(set(keys)) == len(met)
    assert not any(re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", path) for path in met)


def meets_its_fate(name: str, root: Path) -> None:
    """A folder of FOLDERS, written and read under `root`."""
    write, fate = troublesome.FOLDERS[name]
    write(folder(root / "set"))
    source = tree(root / "set", masks=MASKS)
    if isinstance(fate, str):
        with pytest.raises(ValueError, match=re.escape(fate)):
            fates(root / "out", source)
    else:
        check(fates(root / "out", source), {"fine.png": WIDE, "masked.png": WIDE} | fate)


@pytest.mark.parametrize("name", [name for name in troublesome.FOLDERS if not name.startswith("unreadable")])
def test_folders(name, tmp_path):
    meets_its_fate(name, tmp_path)


@pytest.fixture
def common() -> Iterator[Path]:
    """A folder that anybody may use; pytest's are their owner's alone."""
    with tempfile.TemporaryDirectory() as path:
        Path(path).chmod(0o777)
        yield Path(path)


def as_nobody(function: Callable[[], None]) -> None:
    """Call `function` without the rights of root, in a child process if this process is root."""
    if os.geteuid() != 0:
        return function()
    if (child := os.fork()) == 0:
        status = 1
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            status = 2
            function()
            status = 0
        except BaseException:
            traceback.print_exc()
        os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 1:
        pytest.skip("root may not become another user here")
    assert status == 0, "see the traceback of the process that has given up its rights"


@pytest.mark.parametrize("name", [name for name in troublesome.FOLDERS if name.startswith("unreadable")])
def test_unreadable_files_and_folders(name, common):
    as_nobody(lambda: meets_its_fate(name, common))


def test_an_unreadable_tar_is_refused_by_name(common):
    def refused() -> None:
        path = common / "set.tar"
        path.write_bytes(troublesome.FINE + END)
        path.chmod(0o000)
        with pytest.raises(PermissionError, match=rf"Permission denied: '{path}'"):
            fates(common / "out", tree(path))
        assert not (common / "out").exists()

    as_nobody(refused)


@pytest.mark.parametrize("name", troublesome.MEMBERS)
def test_members_of_a_tar(name, tmp_path):
    members, fate = troublesome.MEMBERS[name]
    (tmp_path / "set.tar").write_bytes(troublesome.FINE + members + END)
    check(fates(tmp_path / "out", tree(tmp_path / "set.tar")), {"fine.png": WIDE} | fate)


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("name", troublesome.SAMPLES)
def test_samples_of_a_shard(name, in_place, tmp_path):
    samples, fate = troublesome.SAMPLES[name]
    fine = troublesome.shard("fine", png=troublesome.PNG, json=b'{"label": "fine"}')
    met = fates(tmp_path / "out", web(tmp_path / "web", fine + samples, in_place=in_place, labels=LABELS))
    check(met, {f"0.tar/{path}": fate for path, fate in ({"fine.png": WIDE} | fate).items()})


@pytest.mark.parametrize("kind", ["tar", "shard"])
@pytest.mark.parametrize("name", troublesome.TARS)
def test_a_damaged_tar_is_refused(name, kind, tmp_path):
    damage, sentence = troublesome.TARS[name]
    source = web(tmp_path / "web", b"", in_place=True)
    (tmp_path / "web/0.tar").write_bytes(damage(troublesome.FINE * 2 + END))
    with pytest.raises(ValueError, match=re.escape(sentence)):
        fates(tmp_path / "out", source if kind == "shard" else tree(tmp_path / "web/0.tar"))


def test_a_name_that_imitates_a_key_is_refused(tmp_path):
    """Whoever knows the digest of a path can name another file by it."""
    folder(tmp_path / "set", x=troublesome.PNG, X=troublesome.PNG)
    fates(tmp_path / "out", tree(tmp_path / "set"))
    key = next(key for key in Reader(tmp_path / "out").keys if key.startswith("x-"))
    (tmp_path / f"set/{key}.png").write_bytes(troublesome.PNG)
    with pytest.raises(ValueError, match=rf"{key}.png and x.png would both get the key {key}; rename one"):
        fates(tmp_path / "out", tree(tmp_path / "set"))


def test_a_file_that_has_become_a_pipe_does_not_block(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(troublesome.PNG)
    blob = Blob.of(str(path))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OSError, match="Illegal seek"):
        blob.read()


def test_too_many_rejects_are_an_error_with_the_five_top_reasons(tmp_path):
    bad = {name: data for name, (data, fate) in troublesome.IMAGES.items() if isinstance(fate, str)}
    source = tree(folder(tmp_path / "set", **bad), masks=MASKS)
    with pytest.raises(ValueError, match=f"^{len(bad)} of {len(bad) + 2} inputs are rejected") as error:
        fates(tmp_path / "out", source, max_rejects=0.5)
    assert not (tmp_path / "out").exists()
    results = [re.fullmatch(r"  (\d+) x ([^:]+) \(e\.g\. .*\)", line) for line in str(error.value).splitlines()[1:]]
    counts = [int(match[1]) for match in results if match]
    assert len(results) == len(counts) == 5
    assert counts == sorted(counts, reverse=True)
    reasons = [fate.partition(": ")[0] for _, fate in troublesome.IMAGES.values() if isinstance(fate, str)]
    assert counts[0] == max(map(reasons.count, reasons))
