"""Attacks through data, weights and names that a user received: each is tried, and none succeeds.

An attack that runs leaves a file MARK in the working directory.
"""

import ast
import contextlib
import json
import os
import pickle
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
import webdataset
from PIL import ImageFile, TiffImagePlugin, WebPImagePlugin
from pydantic import TypeAdapter
from typer.testing import CliRunner

from semmae.cli.main import app
from semmae.core import checkpoint
from semmae.core.atomic_files import write_json
from semmae.core.config import load_config, read_yaml
from semmae.core.digests import file_digest
from semmae.data import decoding
from semmae.models import pretrained_weights
from semmae.sharding.sources.sources import AnySource, TorchVision
from stages import shards as stage
from tests import project, troublesome
from tests.project import ROOT
from tests.sharding.test_troublesome import END, LABELS, check, fates, folder, tree, web
from tests.troublesome import NO_FILE, PNG, SPECIAL, UNREADABLE, WIDE, member, shard


class Payload:
    """An object that runs a command when it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch MARK",)


@pytest.fixture(autouse=True)
def marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in a temporary directory, and fail if an attack has created MARK in it."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.rglob("MARK"))


def weights(path: str, how: str) -> Path:
    """Write a checkpoint that holds weights and the payload."""
    content, file = {"model": {"norm.weight": torch.ones(3)}, "args": Payload()}, Path(path)
    if how == "pickle":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=how == "zip")
    return file


@pytest.mark.parametrize("how", ["zip", "old", "pickle"])
@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_weights_of_others_are_not_unpickled(how, name):
    """`teacher.checkpoint` and `semmae import` read weights with `pretrained_weights.read` only."""
    file = weights(name, how)
    with pytest.raises(ValueError, match=f"{name} (holds|is no checkpoint)") as refused:
        pretrained_weights.read_state_dict(file)
    assert "\n" not in str(refused.value)
    assert CliRunner().invoke(app, ["import", str(file), "--out", "encoder"]).exit_code == 1
    assert not Path("encoder").exists()


def test_a_checkpoint_of_a_run_is_not_unpickled_either():
    Path("run/step-000000001").mkdir(parents=True)
    file = weights("run/step-000000001/state.pt", "zip")
    write_json(file.parent / "manifest.json", {"state.pt": file_digest(file)})
    with contextlib.suppress(pickle.UnpicklingError):
        assert checkpoint.load_latest(Path("run"), map_location=torch.device("cpu")) is None


@pytest.mark.parametrize("in_place", [True, False])
def test_pickles_in_a_shard_are_left_alone(in_place, tmp_path, monkeypatch):
    payload = pickle.dumps(Payload())
    samples = shard("x", png=PNG, json=b'{"label": 1}', pkl=payload, pyd=payload, pickle=payload, pth=payload)
    source = web(tmp_path / "web", samples, in_place=in_place, labels=LABELS)
    check(fates(tmp_path / "out", source), {"0.tar/x.png": WIDE})
    monkeypatch.chdir(tmp_path / "web")
    with contextlib.suppress(webdataset.autodecode.DecodingError):
        list(webdataset.WebDataset("0.tar", shardshuffle=False).decode())
    Path("MARK").unlink()  # the attack is alive: WebDataset's own decoder runs it


@pytest.mark.parametrize(
    ("name", "file", "split"),
    [
        ("LSUN", "_cache_bedroom_val_lmdb", {"classes": "val"}),
        ("CIFAR10", "cifar-10-batches-py/data_batch_1", {"train": True}),
    ],
)
def test_pickles_of_torchvision_are_refused_unless_their_digest_is_known(name, file, split, tmp_path):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(pickle.dumps(Payload()))
    source = TorchVision("torchvision", name, str(tmp_path), {"train": split}, False, None, labels=True)
    with pytest.raises(ValueError, match=r"unpickles a cache file|not found or corrupted"):
        source.list_items(seed=0)


TREE = {"splits": None, "labels": True, "masks": None}
WEB = {"kind": "webdataset", "in_place": True, "labels": None, "masks": None}
CIFAR = {"kind": "torchvision", "name": "CIFAR10", "splits": {"train": {}}, "download": False, "labels": True}
HUB = {"kind": "hf", "splits": {"train": "train"}, "columns": {"image": "image", "label": None}, "masks": None}
PLACES: dict[str, Callable[[str], dict[str, Any]]] = {
    "folder": lambda place: TREE | {"kind": "folder", "path": place},
    "tar": lambda place: TREE | {"kind": "tar", "path": place},
    "shards": lambda place: WEB | {"path": "web", "shards": {"train": place}},
    "folder of shards": lambda place: WEB | {"path": place, "shards": {"train": "*.tar"}},
    "torchvision": lambda place: CIFAR | {"path": place},
    "hf": lambda place: HUB | {"path": place, "hub": None},
    "hub": lambda place: HUB | {"path": None, "hub": {"name": place, "subset": None, "revision": None}},
}


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("bad", ["pipe:touch MARK", " PIPE:touch MARK", "https://x.org/x.tar", "s3://x/y", "file:///x"])
def test_commands_and_urls_are_no_paths_of_data(kind, bad):
    def read(place: str) -> None:
        TypeAdapter(AnySource).validate_json(json.dumps(PLACES[kind](place) | {"val_fraction": None}))

    read("plain")
    with pytest.raises(ValueError, match="pipe: commands and URLs are refused"):
        read(bad)


def test_a_range_of_shards_expands_to_no_command(tmp_path):
    source = web(tmp_path / "web", b"", in_place=True)
    source.shards["train"] = "{pipe:touch MARK,x}.tar"
    with pytest.raises(ValueError, match=r"has no file pipe:touch MARK\.tar"):
        source.list_items(seed=0)


NAMES = ["x; touch MARK #", "$(touch MARK)", "../raw", "a b", "", "x\ny", "a.b", "x@y"]


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_a_dataset_is_plain(name):
    given = read_yaml(ROOT / "params.yaml")["shards"]
    given["datasets"] = {name: given["datasets"]["main"]}
    write_json(Path("params.yaml"), {"shards": given})
    with pytest.raises(ValueError, match="expected letters, digits, - and _ only"):
        load_config(stage.ShardsConfig, "shards")


def test_the_name_of_a_dataset_reaches_no_shell(tmp_path):
    """`dvc repro` starts the stage before anything of ours sees the name."""
    toy, name = project.create(tmp_path / "toy"), "x; touch MARK #"
    toy.set("shards.datasets", {name: read_yaml(ROOT / "params.yaml")["shards"]["datasets"]["main"]})
    assert "expected letters, digits, - and _ only" in toy.dvc("repro", f"shards@{name}", expect=255)


@pytest.mark.parametrize("variable", ["GOPEN_REWRITE", "WDS_SECURE"])
def test_no_variable_changes_what_is_read(variable, tmp_path, monkeypatch):
    source = web(tmp_path / "web", shard("x", png=PNG), in_place=True)
    web(tmp_path / "other", shard("y", png=PNG), in_place=True)
    monkeypatch.setenv(variable, {"GOPEN_REWRITE": f"{source.path}={tmp_path / 'other'}", "WDS_SECURE": "0"}[variable])
    check(fates(tmp_path / "out", source), {"0.tar/x.png": WIDE})


def test_a_tar_reaches_nothing_outside_of_it(tmp_path):
    (tmp_path / "secret.png").write_bytes(secret := troublesome.encoded(troublesome.TURNED))
    targets = [str(tmp_path / "secret.png"), "../secret.png", "/etc/passwd"]
    links = [
        member(f"{number}-{name}.png", b"", kind, linkname=target)
        for name, kind in (("symbolic", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE))
        for number, target in enumerate(targets)
    ]
    files = [member(name) for name in ("fine.png", "../secret.png", targets[0], "a/../../secret.png", "../new.png")]
    members = b"".join([*links, *files])
    (tmp_path / "in").mkdir()
    (tmp_path / "in/set.tar").write_bytes(members + END)
    met = fates(tmp_path / "tar", tree(tmp_path / "in/set.tar"))
    assert {path for path, fate in met.items() if fate == WIDE} == {"fine.png"}
    met = fates(tmp_path / "shards", web(tmp_path / "web", members, in_place=False))
    assert sum(fate == NO_FILE for fate in met.values()) == len(links)
    assert (tmp_path / "secret.png").read_bytes() == secret
    assert {path.name for path in tmp_path.iterdir()} == {"in", "secret.png", "shards", "tar", "web"}
    assert not any(secret in path.read_bytes() for path in (*tmp_path.glob("tar/*"), *tmp_path.glob("shards/*")))


def test_a_row_of_parquet_names_no_file_outside_of_its_dataset(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="sources of kind hf need the datasets library")
    from semmae.sharding.sources.huggingface import Columns, HuggingFace

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    folder(tmp_path / "set/.pictures")
    os.mkfifo(tmp_path / "set/.pictures/pipe.png")
    (tmp_path / "secret.png").write_bytes(PNG)
    outside = "the row names a file outside of its dataset: "
    expected = {
        "set/.pictures/fine.png": WIDE,
        "set/.pictures/none.png": UNREADABLE,
        "set/.pictures/pipe.png": SPECIAL,
        "set/../secret.png": outside,
        "secret.png": outside,
    }
    rows = [{"bytes": None, "path": str(tmp_path / name)} for name in expected]
    rows += [{"bytes": PNG, "path": "/etc/passwd"}, {"bytes": None, "path": None}]
    column = pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    pq.write_table(pa.table({"image": column}), tmp_path / "set/train.parquet")
    columns = Columns(image="image", label=None)
    source = HuggingFace("hf", str(tmp_path / "set"), None, {"train": "train"}, columns, val_fraction=None, masks=None)
    met = fates(tmp_path / "out", source)
    check(met, dict(zip(sorted(met), [*expected.values(), WIDE, "the row has no image"], strict=True)))


BOMBS = [name for name, (_, fate) in troublesome.IMAGES.items() if str(fate).startswith("the image has too many ")]


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_before_anything_is_decoded(name, monkeypatch):
    def decode(image: ImageFile.ImageFile) -> None:
        pytest.fail(f"{image.format} is decoded")

    for decoder in (ImageFile.ImageFile, WebPImagePlugin.WebPImageFile, TiffImagePlugin.TiffImageFile):
        monkeypatch.setattr(decoder, "load", decode)
    for read in (
        decoding.to_rgb,
        decoding.inspect_image,
        decoding.decode_mask,
        partial(decoding.convert_image, short_side=8),
    ):
        with pytest.raises(ValueError, match="the image has too many"):
            read(troublesome.IMAGES[name][0])


def test_postscript_runs_no_program(tmp_path, monkeypatch):
    """torchvision opens all formats of Pillow, and Pillow runs the program `gs` on PostScript."""
    (tmp_path / "gs").write_text("#!/bin/sh\ntouch MARK\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "x.eps").write_bytes(troublesome.IMAGES["PostScript"][0])
    with pytest.raises(OSError, match=r"[Gg]host"):
        torchvision.datasets.folder.pil_loader(str(tmp_path / "x.eps"))


STATE = """
import torch
from semmae.core import checkpoint, stage
from semmae.core.atomic_files import write_json
from semmae.core.locks import exclusive_lock
from semmae.core.model_files import save_model
from semmae.core.paths import state_root
from semmae.evaluation import mapped_rows

def write():
    root = state_root()
    with exclusive_lock("output", "x"):
        write_json(root / "runs/f/identity.json", {})
        save_model(root / "part_maps", "model", {"x": torch.ones(3)}, {})
        checkpoint.save(root / "runs/f", 1, {"x": 1})
        mapped_rows.MappedRows(3, root / "runs/f/rows").append(torch.ones(2, 3))

stage.main(write)
"""


@pytest.mark.parametrize(
    ("command", "num_files"), [(["-c", STATE], 10), (["-m", "semmae", "state", "ls"], 2)], ids=["stage", "command"]
)
def test_the_state_is_not_world_writable_under_any_umask(command, num_files, tmp_path):
    root = tmp_path / "cache/state"
    environment = os.environ | {"SEMMAE_STATE": str(root)}
    subprocess.run([sys.executable, *command], check=True, cwd=ROOT, env=environment, umask=0)
    found = [tmp_path / "cache", root, *root.rglob("*")]
    assert len(found) >= num_files
    assert [path for path in found if path.stat().st_mode & stat.S_IWOTH] == []


def dotted(node: ast.AST) -> str:
    """`a.b.c` as it is written; of any other expression the end."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


PICKLES = ("pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "torch.jit.load")
SHELLS = ("eval", "exec", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput")
DECODERS = (".imread", ".imdecode", "decode_image", "decode_jpeg", "read_image", "Image.open")


def danger(call: ast.Call) -> str:
    """What is dangerous about a call, "" if nothing is."""
    name, given = dotted(call.func), {word.arg: ast.unparse(word.value) for word in call.keywords}
    if name in PICKLES or "allow_pickle" in given or (name == "torch.load" and given.get("weights_only") != "True"):
        return "unpickles"
    if name in SHELLS or "shell" in given:
        return "runs text"
    if name.endswith(("extractall", "extractfile", "unpack_archive")):
        return "unpacks archives"
    return "decodes images" if name.endswith(DECODERS) else ""


def test_the_code_has_no_other_way_to_run_unpack_or_decode():
    """So there are two decoders with limits: not OpenCV's, not torchvision's. And nothing opens URLs as shards."""
    found: set[tuple[str, str]] = set()
    imported: set[str] = set()
    used: set[str] = set()  # attributes of webdataset
    for path in (*ROOT.glob("semmae/**/*.py"), *ROOT.glob("stages/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and (what := danger(node)):
                found.add((path.name, what))
            elif isinstance(node, ast.Attribute) and dotted(node).startswith("webdataset."):
                used.add(dotted(node))
            elif isinstance(node, ast.Import):
                imported.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                imported.update([str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)])
    assert found == {("decoding.py", "decodes images"), ("jpeg.py", "decodes images")}
    assert not {name for name in imported if name.startswith(("joblib", "dill", "yaml", "torchvision.io"))}
    # of webdataset only the writer, and the rule that splits a name: neither opens a URL nor decodes anything
    of_webdataset = {name for name in imported if name.startswith("webdataset")}
    assert of_webdataset == {"webdataset", "webdataset.tariterators", "webdataset.tariterators.base_plus_ext"}
    assert used == {"webdataset.TarWriter"}
