"""Is this machine fit to run the pipeline? Every check says what it found and, where that is not good, what to do.

`examine` looks at packages, disk, Git, DVC, the processor and the state root; it changes nothing. A check is `ok`,
`warn` (works, with a reason to know) or `fail` (something will stop).
"""

import shutil
import stat
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from packaging.requirements import Requirement

from semmae.cli import state_dir
from semmae.core.paths import state_root

SCARCE, NONE_LEFT = 10e9, 1e9  # bytes
VOLATILE = ("tmpfs", "ramfs")


class Check(NamedTuple):
    """What was looked at, how it is, what was found, what to do about it ("" where nothing is to be done)."""

    what: str
    verdict: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""


def examine(project: Path) -> Iterator[Check]:
    """All checks, for the project in that folder."""
    yield _packages()
    yield from (_disk(what, place) for what, place in {"data": project, "state root": state_root()}.items())
    yield _state_root(state_root())
    yield from _git(project)
    yield from _dvc(project)
    yield _processor()


def _packages() -> Check:
    """Are the packages that pyproject.toml asks for there, in versions that it allows?"""
    wanted = [Requirement(line) for line in requires("semmae") or []]
    wrong, count = [], 0
    for package in wanted:
        if package.marker is not None and not package.marker.evaluate({"extra": ""}):
            continue
        count += 1
        try:
            found = version(package.name)
        except PackageNotFoundError:
            wrong.append(f"{package.name} is missing")
            continue
        if not package.specifier.contains(found, prereleases=True):
            wrong.append(f"{package.name} {found} is not {package.specifier}")
    if wrong:
        return Check(
            "packages", "fail", "; ".join(wrong), "pip install -c constraints.txt -e . (or: rm -r .venv; make demo)"
        )
    return Check("packages", "ok", f"{count} direct dependencies, torch {version('torch')}")


def _disk(what: str, place: Path) -> Check:
    """Is there room?"""
    free = shutil.disk_usage(place).free
    verdict: Literal["ok", "warn", "fail"] = "fail" if free < NONE_LEFT else "warn" if free < SCARCE else "ok"
    remedy = (
        ""
        if verdict == "ok"
        else "free some: dvc gc --workspace, semmae state gc; or move it (dvc cache dir, SEMMAE_STATE)"
    )
    return Check(f"disk of the {what}", verdict, f"{free / 1e9:.1f} GB free at {place.absolute()}", remedy)


def _state_root(root: Path) -> Check:
    """Is it a place that lasts, and this user's alone to write?"""
    unfinished, busy = len(state_dir.runs()), len(state_dir.at_work())
    found = f"{root}: {unfinished} unfinished runs, {busy} processes at work"
    if root.stat().st_mode & stat.S_IWOTH:
        return Check("state root", "fail", f"{root} is writable for everyone", f"chmod o-w {root}")
    if (kind := _filesystem(root)) in VOLATILE:
        return Check("state root", "warn", f"{root} is in memory ({kind})", "set SEMMAE_STATE to a folder on a disk")
    return Check("state root", "ok", found)


def _filesystem(place: Path) -> str:
    """The type of the file system that holds `place`, by the longest mount point above it; "" where /proc is not."""
    mounts = Path("/proc/mounts")
    points = [line.split()[1:3] for line in mounts.read_text().splitlines()] if mounts.exists() else []
    above = [(len(point), kind) for point, kind in points if place.is_relative_to(point)]
    return max(above)[1] if above else ""


def _git(project: Path) -> Iterator[Check]:
    """Is the project a repository of this user's, with a name for experiments?"""
    inside = _said("git", "-C", str(project), "rev-parse", "--show-toplevel")
    if inside.returncode:
        remedy = (
            "git init && git add . && git commit; a folder of another user's: git config --global --add safe.directory"
        )
        yield Check("git", "fail", inside.stderr.strip().partition("\n")[0], remedy)
        return
    who = [_said("git", "-C", str(project), "config", f"user.{key}").stdout.strip() for key in ("name", "email")]
    if all(who):
        yield Check("git", "ok", f"experiments are committed by {who[0]} <{who[1]}>")
    else:
        remedy = "git config user.name ... and user.email ...; dvc repro works without"
        yield Check("git", "warn", "no user.name or user.email, which dvc exp run needs", remedy)


def _said(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True)


def _dvc(project: Path) -> Iterator[Check]:
    """Does DVC keep to itself, and keep what it stores safe?"""
    try:
        from dvc.exceptions import DvcException
        from dvc.repo import Repo
    except ImportError:
        yield Check(
            "dvc",
            "warn",
            "not installed",
            "stages still run: python -m stages.<name>; pip install dvc for the pipeline",
        )
        return
    try:
        repo = Repo(str(project))
    except DvcException as error:
        yield Check(
            "dvc", "fail", str(error).partition("\n")[0], "run it in the project's root, where .dvc/ and dvc.yaml are"
        )
        return
    for lock in cut_short(project):
        found = f"{lock} is cut short: DVC was killed while it wrote it, and refuses to run (treeverse/dvc#7615)"
        yield Check(lock.name, "fail", found, f"rm {lock}, once no DVC is at work here")
    for entry in half_written(Path(repo.stage_cache.cache_dir)):
        found = f"{entry} is unfinished: DVC was killed there, or is at work; its stage may fail with 'outs' or join()"
        yield Check("dvc run cache", "warn", found, f"rm -r {entry}, once no DVC is at work here")
    talks = [key for key in ("analytics", "check_update") if repo.config["core"].get(key, True)]
    if talks:
        yield Check("dvc", "warn", f"core.{talks[0]} is on", f"dvc config core.{talks[0]} false")
    links = set(repo.config["cache"].get("type") or []) & {"hardlink", "symlink"}
    if links:
        found = f"cache.type is {', '.join(sorted(links))}: a file changed in place changes the cache with it"
        yield Check("dvc cache", "warn", found, "dvc config cache.type reflink,copy")
    for name, remote in repo.config["remote"].items():
        if not remote.get("verify"):
            yield Check(
                f"dvc remote {name}", "warn", "downloads are not verified", f"dvc remote modify {name} verify true"
            )
    if not talks and not links:
        yield Check("dvc", "ok", f"{version('dvc')}, no analytics")


def cut_short(project: Path) -> Iterator[Path]:
    """The files that DVC writes in place and cannot read any more, having been killed over one. Nothing is lost with
    them: the one tells who is at work, and what dvc.lock tells stands in the run cache too.
    """
    from dvc.dvcfile import Lockfile
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.utils.serialize import ParseError, load_json

    try:
        if (lock := project / ".dvc/tmp/rwlock").exists():
            load_json(lock)
    except ParseError:
        yield lock
    try:
        if (lock := project / "dvc.lock").exists():
            Lockfile(Repo(str(project)), str(lock)).load()
    except DvcException:
        yield lock


def half_written(run_cache: Path) -> Iterator[Path]:
    """What a kill (or a DVC still at work) has left in DVC's run cache: entries that have their temporary name, which
    it takes for whole ones, and folders without any other. Their stages have not ended, so nothing is lost with them.
    """
    for folder in run_cache.glob("*/*"):
        entries, unfinished = set(folder.glob("[!.]*")), set(folder.glob(".*.tmp"))
        yield from unfinished if entries else [folder]


def _processor() -> Check:
    """What will `device: auto` compute on, and is bf16 fast there?"""
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        found = f"{torch.cuda.device_count()} x {card.name}, {card.total_memory / 2**30:.0f} GiB each"
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Check("processor", "ok", found)
        return Check("processor", "warn", f"{found}, without bf16", "set precision to fp32")
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    found = f"CPU, {torch.get_num_threads()} threads; torch {torch.__version__} sees no GPU"
    if "avx512_bf16" in flags or "amx_bf16" in flags or not flags:
        return Check("processor", "ok", found)
    return Check("processor", "warn", f"{found}, no bf16 instructions", "precision: fp32 is faster here")
