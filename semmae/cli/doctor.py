"""`semmae doctor`: check whether this machine can run the pipeline.

The checks cover packages, disk space, the state root, Git, DVC and the processor. They change nothing. Each check
reports a verdict, its finding and a remedy. The verdict is `ok`, `warn` (runs work with a limitation) or `fail` (runs
stop with an error).
"""

import shutil
import stat
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal, NamedTuple

from packaging.requirements import Requirement

from semmae.cli.output import console, new_table
from semmae.core.paths import state_root

Verdict = Literal["ok", "warn", "fail"]
LOW_SPACE, NO_SPACE = 10e9, 1e9  # bytes
MEMORY_FILESYSTEMS = ("tmpfs", "ramfs")


class Check(NamedTuple):
    """The result of one check; `remedy` is "" if there is nothing to do."""

    subject: str
    verdict: Verdict
    finding: str
    remedy: str = ""


def doctor() -> None:
    """Check whether this machine can run the pipeline, and print a remedy for each problem."""
    table, num_failed = new_table("doctor", "", "subject", "finding", "remedy"), 0
    for check in examine(Path(".")):
        num_failed += check.verdict == "fail"
        table.add_row(check.verdict, check.subject, check.finding, check.remedy)
    console.print(table)
    if num_failed:
        raise ValueError(f"{num_failed} checks failed; apply the remedies in the table above")


def examine(project: Path) -> Iterator[Check]:
    """Run all checks on the project in the folder `project`."""
    yield _check_packages()
    yield _check_disk("data", project)
    yield _check_disk("state root", state_root())
    yield _check_state_root(state_root())
    yield from _check_git(project)
    yield from _check_dvc(project)
    yield _check_processor()


def _check_packages() -> Check:
    """Check that each dependency in pyproject.toml is installed in an allowed version."""
    requirements = [Requirement(line) for line in requires("semmae") or []]
    problems, count = [], 0
    for package in requirements:
        if package.marker is not None and not package.marker.evaluate({"extra": ""}):
            continue
        count += 1
        try:
            installed = version(package.name)
        except PackageNotFoundError:
            problems.append(f"{package.name} is missing")
            continue
        if not package.specifier.contains(installed, prereleases=True):
            problems.append(f"{package.name} {installed} is not {package.specifier}")
    if problems:
        remedy = "pip install -c constraints.txt -e . (or: rm -r .venv; make demo)"
        return Check("packages", "fail", "; ".join(problems), remedy)
    return Check("packages", "ok", f"{count} direct dependencies, torch {version('torch')}")


def _check_disk(subject: str, path: Path) -> Check:
    """Check the free space of the disk that holds `path`."""
    free = shutil.disk_usage(path).free
    verdict: Verdict = "fail" if free < NO_SPACE else "warn" if free < LOW_SPACE else "ok"
    remedy = (
        "run dvc gc --workspace or semmae state gc --unused-days 7; "
        "or move DVC's cache (dvc cache dir) or the state root (SEMMAE_STATE) to another disk"
    )
    finding = f"{free / 1e9:.1f} GB free at {path.absolute()}"
    return Check(f"disk of the {subject}", verdict, finding, "" if verdict == "ok" else remedy)


def _check_state_root(root: Path) -> Check:
    """Check that the state root is on a disk and that only this user can write to it."""
    from semmae.cli import state_dir

    if root.stat().st_mode & stat.S_IWOTH:
        return Check("state root", "fail", f"every user can write to {root}", f"chmod o-w {root}")
    if (filesystem := _filesystem_type(root)) in MEMORY_FILESYSTEMS:
        remedy = "set SEMMAE_STATE to a folder on a disk"
        return Check("state root", "warn", f"{root} is in memory ({filesystem})", remedy)
    num_unfinished, num_processes = len(state_dir.list_runs()), len(state_dir.lock_holders())
    return Check("state root", "ok", f"{root}: {num_unfinished} unfinished runs, {num_processes} running processes")


def _filesystem_type(path: Path) -> str:
    """Return the type of the file system that holds `path`; "" if /proc/mounts does not exist."""
    file = Path("/proc/mounts")
    mounts = [line.split()[1:3] for line in file.read_text().splitlines()] if file.exists() else []
    parents = [(len(folder), filesystem) for folder, filesystem in mounts if path.is_relative_to(folder)]
    return max(parents)[1] if parents else ""


def _check_git(project: Path) -> Iterator[Check]:
    """Check that the project is a Git repository of this user, with a name and an email address for commits."""
    toplevel = _run("git", "-C", str(project), "rev-parse", "--show-toplevel")
    if toplevel.returncode:
        remedy = (
            "git init && git add . && git commit; "
            "if the folder belongs to another user: git config --global --add safe.directory <folder>"
        )
        yield Check("git", "fail", toplevel.stderr.strip().partition("\n")[0], remedy)
        return
    name, email = (_run("git", "-C", str(project), "config", f"user.{key}").stdout.strip() for key in ("name", "email"))
    if name and email:
        yield Check("git", "ok", f"commits experiments as {name} <{email}>")
    else:
        remedy = "git config user.name ... and user.email ...; dvc repro works without them"
        yield Check("git", "warn", "no user.name or user.email, which dvc exp run needs", remedy)


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True)


def _check_dvc(project: Path) -> Iterator[Check]:
    """Check that DVC can read the project, and check its settings for analytics, cache links and downloads."""
    try:
        from dvc.exceptions import DvcException
        from dvc.repo import Repo
    except ImportError:
        remedy = "pip install dvc to run the pipeline; single stages run without it: python -m stages.<name>"
        yield Check("dvc", "warn", "not installed", remedy)
        return
    try:
        repo = Repo(str(project))
    except DvcException as error:
        remedy = "run the command in the project's root, the folder with .dvc/ and dvc.yaml"
        yield Check("dvc", "fail", str(error).partition("\n")[0], remedy)
        return
    yield from _check_interrupted_writes(project, Path(repo.stage_cache.cache_dir))
    telemetry = [key for key in ("analytics", "check_update") if repo.config["core"].get(key, True)]
    if telemetry:
        yield Check("dvc", "warn", f"core.{telemetry[0]} is on", f"dvc config core.{telemetry[0]} false")
    links = set(repo.config["cache"].get("type") or []) & {"hardlink", "symlink"}
    if links:
        finding = f"cache.type is {', '.join(sorted(links))}: editing a data file also changes its copy in the cache"
        yield Check("dvc cache", "warn", finding, "dvc config cache.type reflink,copy")
    for name, remote in repo.config["remote"].items():
        if not remote.get("verify"):
            remedy = f"dvc remote modify {name} verify true"
            yield Check(f"dvc remote {name}", "warn", "downloads are not verified", remedy)
    if not telemetry and not links:
        yield Check("dvc", "ok", f"{version('dvc')}, no analytics")


def _check_interrupted_writes(project: Path, run_cache: Path) -> Iterator[Check]:
    """Check for files that DVC left incomplete when it was killed."""
    for file in truncated_files(project):
        finding = f"{file} is truncated: DVC was killed while writing it, and cannot run now (treeverse/dvc#7615)"
        yield Check(file.name, "fail", finding, f"rm {file} when no DVC process is running")
    for entry in incomplete_cache_entries(run_cache):
        finding = f"{entry} is incomplete: DVC was killed while writing it, or is running; its stage may fail"
        yield Check("dvc run cache", "warn", finding, f"rm -r {entry} when no DVC process is running")


def truncated_files(project: Path) -> Iterator[Path]:
    """Find the lock files of DVC that it cannot parse, because it was killed while writing them.

    They can be deleted safely: rwlock only lists running processes, and the run cache also holds the content of
    dvc.lock.
    """
    from dvc.dvcfile import Lockfile
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.utils.serialize import ParseError, load_json

    try:
        if (file := project / ".dvc/tmp/rwlock").exists():
            load_json(file)
    except ParseError:
        yield file
    try:
        if (file := project / "dvc.lock").exists():
            Lockfile(Repo(str(project)), str(file)).load()
    except DvcException:
        yield file


def incomplete_cache_entries(run_cache: Path) -> Iterator[Path]:
    """Find incomplete entries in DVC's run cache, left by a kill or being written by a running DVC process.

    Yields incomplete entries, or their whole folder if it has no complete entry. They can be deleted safely, because
    their stages never finished.
    """
    for folder in run_cache.glob("*/*"):
        complete, incomplete = set(folder.glob("[!.]*")), set(folder.glob(".*.tmp"))
        yield from incomplete if complete else [folder]


def _check_processor() -> Check:
    """Report the device that `device: auto` selects, and whether it computes bf16 natively."""
    import torch

    from semmae.core.compute import native_precision

    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        finding = f"{torch.cuda.device_count()} x {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB each"
    else:
        finding = f"CPU, {torch.get_num_threads()} threads; torch {torch.__version__} finds no GPU"
    if native_precision("auto") == "bf16":
        return Check("processor", "ok", finding)
    return Check("processor", "warn", f"{finding}, no bf16 instructions", "set precision to auto or fp32, not bf16")
