"""Is anything ever lost? The toy pipeline under random signals, until every file is there, against an undisturbed run.

    python -m benchmarks.chaos --kills 200 [--seed 0] [--targets pretrain] [--undisturbed FOLDER] [--folder FOLDER]

While `dvc repro` runs, SIGKILL, SIGTERM or SIGINT goes at a random moment to the stage, to `dvc`, or to the whole
process group; then the same command is run again, as a person would. When the pipeline is through, its files are
compared bit for bit with those of an undisturbed run, and a fresh copy is disturbed, until so many signals were sent.
Stages are forked from a process that has loaded torch (`tests/warm.py`): what dies is the stage, not the loading of it.

The last line is `kills K, artifacts A, differing D, wedged W`: A files compared, D of them different or missing, W
rounds that did not end although nobody disturbed them any more. Exit status 1 if D or W is not 0.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from contextlib import chdir, suppress
from pathlib import Path
from subprocess import DEVNULL, Popen, TimeoutExpired

import psutil

from semmae.cli import doctor
from semmae.core.digests import file_digest
from tests.project import Project, create

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
VICTIMS = ("stage", "dvc", "group")
CALM, PATIENCE = 20, 1800  # commands in a row that may fail undisturbed, seconds that one of them may take
KEPT = ("data", "results")  # where the pipeline keeps what it makes


def main() -> None:
    """Disturb rounds of the pipeline until enough signals were sent."""
    options = parsed()
    chance, sent, compared, differing, wedged = random.Random(options.seed), 0, 0, 0, 0
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="chaos-") as temporary:
        root = Path(temporary)
        undisturbed = (
            Project(options.undisturbed) if options.undisturbed else calm(create(root / "calm"), options.targets)
        )
        expected = digests(undisturbed, options.targets)
        while sent < options.kills:
            project = create(root / f"round-{sent}")
            sent += disturb(project, options.targets, options.kills - sent, options.gap, chance)
            if said := finish(project, options.targets):
                wedged += 1
                kept = shutil.move(project.root, tempfile.mkdtemp(prefix="wedged-"))
                print(f"wedged: {kept} is kept; the last command said\n{said}", file=sys.stderr)
                continue
            found = digests(project, options.targets)
            different = sorted(path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path))
            for path in different:
                print(f"differs: {path}", file=sys.stderr)
            compared, differing = compared + len(expected), differing + len(different)
            shutil.rmtree(project.root)
    print(f"kills {sent}, artifacts {compared}, differing {differing}, wedged {wedged}")
    raise SystemExit(bool(differing or wedged))


def parsed() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=10, help="signals to send in all")
    parser.add_argument("--seed", type=int, default=0, help="of moments, signals and victims")
    parser.add_argument("--gap", type=float, default=8.0, help="longest time between two signals, in seconds")
    parser.add_argument("--targets", nargs="*", default=[], help="stages to bring up to date; all by default")
    parser.add_argument("--undisturbed", type=Path, help="a toy project that has run already, to compare with")
    parser.add_argument("--folder", type=Path, help="where the projects go; the system's temporary folder by default")
    return parser.parse_args()


def calm(project: Project, targets: list[str]) -> Project:
    """The project after an undisturbed run."""
    project.dvc("repro", *targets)
    return project


def digests(project: Project, targets: list[str]) -> dict[str, str]:
    """The digest of every file that the pipeline keeps; with targets, of what they and the stages before them make."""
    made = outputs(project, targets)
    files = [path for kept in KEPT for path in (project.folder / kept).rglob("*") if path.is_file()]
    inside = {path.relative_to(project.folder): path for path in files}
    return {
        str(name): file_digest(path) for name, path in sorted(inside.items())
        if any(name.is_relative_to(place) for place in made)
    }  # fmt: skip


def outputs(project: Project, targets: list[str]) -> list[str]:
    """The outputs of the targets' stages and of all before them, by DVC's own graph."""
    from dvc.repo import Repo

    with chdir(project.folder):  # where DVC looks for the targets
        repo = Repo()
        stages = {stage for target in targets or [None] for stage in repo.stage.collect(target, with_deps=True)}
    return [str(Path(out.fs_path).relative_to(project.folder)) for stage in stages for out in stage.outs]


def disturb(project: Project, targets: list[str], kills: int, gap: float, chance: random.Random) -> int:
    """Run `dvc repro` again and again, each time with a signal at a random moment, at most `kills` times; returns how
    many were sent before one run got through.
    """
    sent = 0
    while sent < kills:
        process = project.start(*repro(targets), out=DEVNULL)
        moment = time.monotonic() + chance.uniform(0, gap)
        while process.poll() is None and time.monotonic() < moment:
            time.sleep(0.05)
        if process.poll() is not None:
            return sent
        sent += strike(process, chance.choice(SIGNALS), chance.choice(VICTIMS))
        try:
            process.wait(PATIENCE)
        except TimeoutExpired:  # `finish` will find it at work, and say so
            return sent
    return sent


def repro(targets: list[str]) -> tuple[str, ...]:
    """The command that brings the targets up to date."""
    return sys.executable, "-m", "dvc", "repro", *targets


def strike(process: Popen[str], number: signal.Signals, victim: str) -> bool:
    """Send the signal to the stage that `dvc` runs (to `dvc` itself while there is none), to `dvc`, or to both; whether
    any of them was still there.
    """
    try:
        parent = psutil.Process(process.pid)
        children = parent.children(recursive=True)
        struck = {"stage": children or [parent], "dvc": [parent], "group": [parent, *children]}[victim]
    except psutil.NoSuchProcess:
        return False
    hit = False
    for one in struck:
        with suppress(psutil.NoSuchProcess):
            one.send_signal(number)
            hit = True
    return hit


def finish(project: Project, targets: list[str]) -> str:
    """Run undisturbed until the pipeline is through: ""; if it never is, what the last command said.

    As docs/operations.md says, what a stage left by a killed `dvc` still writes is waited for, and what DVC was killed
    over is removed, and said to be.
    """
    for _ in range(CALM):
        process = project.start(*repro(targets))
        try:
            said, _ = process.communicate(timeout=PATIENCE)
        except TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return f"nothing new in {PATIENCE} seconds\n{process.communicate()[0]}"
        if process.returncode == 0:
            return ""
        run_cache = project.folder / ".dvc/cache/runs"
        for cut in (*doctor.truncated_files(project.folder), *doctor.incomplete_cache_entries(run_cache)):
            print(f"cut short by a kill of DVC, and removed: {cut}", file=sys.stderr)
            shutil.rmtree(cut) if cut.is_dir() else cut.unlink()
        time.sleep(2)
    return said


if __name__ == "__main__":
    main()
