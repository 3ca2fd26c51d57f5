"""Test that no result is lost: run the toy pipeline under random signals and compare its files with an undisturbed run.

    python -m benchmarks.chaos --kills 200 [--seed 0] [--targets pretrain] [--undisturbed FOLDER] [--folder FOLDER]

While `dvc repro` runs, SIGKILL, SIGTERM or SIGINT is sent at a random moment to the stage, to `dvc`, or to the process
group. Then the same command runs again. When the pipeline has finished, its files are compared bit by bit with those of
an undisturbed run. This repeats with new projects until `--kills` signals were sent. Stages are forked from a process
that has loaded torch (`tests/warm.py`), so the signals reach the stage and not the import of torch.

The last line is `kills K, artifacts A, differing D, wedged W`: A files were compared, D of them differ or are missing,
and W rounds did not finish after the last signal. The exit status is 1 if D or W is not 0.
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
CALM, PATIENCE = 20, 1800  # undisturbed commands that may fail in a row; seconds per command
KEPT = ("data", "results")  # folders of the outputs


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
            if output := finish(project, options.targets):
                wedged += 1
                kept = shutil.move(project.root, tempfile.mkdtemp(prefix="wedged-"))
                print(f"wedged: {kept} is kept; output of the last command:\n{output}", file=sys.stderr)
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
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=10, help="signals to send in all")
    parser.add_argument("--seed", type=int, default=0, help="of moments, signals and victims")
    parser.add_argument("--gap", type=float, default=8.0, help="longest time between two signals, in seconds")
    parser.add_argument("--targets", nargs="*", default=[], help="stages to bring up to date; all by default")
    parser.add_argument("--undisturbed", type=Path, help="a finished toy project to compare with")
    parser.add_argument(
        "--folder", type=Path, help="folder of the projects; default: the temporary folder of the system"
    )
    return parser.parse_args()


def calm(project: Project, targets: list[str]) -> Project:
    """Run the pipeline undisturbed and return the project."""
    project.dvc("repro", *targets)
    return project


def digests(project: Project, targets: list[str]) -> dict[str, str]:
    """Return the digest of every file that the targets, or all stages, and the stages before them write."""
    made = outputs(project, targets)
    files = [path for kept in KEPT for path in (project.folder / kept).rglob("*") if path.is_file()]
    inside = {path.relative_to(project.folder): path for path in files}
    return {
        str(name): file_digest(path) for name, path in sorted(inside.items())
        if any(name.is_relative_to(folder) for folder in made)
    }  # fmt: skip


def outputs(project: Project, targets: list[str]) -> list[str]:
    """Return the outputs of the stages of the targets and of all stages before them, from the graph of DVC."""
    from dvc.repo import Repo

    with chdir(project.folder):  # DVC looks up targets in the working folder
        repo = Repo()
        stages = {stage for target in targets or [None] for stage in repo.stage.collect(target, with_deps=True)}
    return [str(Path(out.fs_path).relative_to(project.folder)) for stage in stages for out in stage.outs]


def disturb(project: Project, targets: list[str], kills: int, gap: float, chance: random.Random) -> int:
    """Run `dvc repro` repeatedly, each time with a signal at a random moment.

    Returns:
        The number of signals sent, at most `kills`, before one run finished.
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
        except TimeoutExpired:  # `finish` reports it
            return sent
    return sent


def repro(targets: list[str]) -> tuple[str, ...]:
    """Return the command that updates the targets."""
    return sys.executable, "-m", "dvc", "repro", *targets


def strike(process: Popen[str], number: signal.Signals, victim: str) -> bool:
    """Send the signal to the stage that `dvc` runs, to `dvc`, or to both; to `dvc` if it runs no stage.

    Returns:
        Whether a process received the signal.
    """
    try:
        parent = psutil.Process(process.pid)
        children = parent.children(recursive=True)
        struck = {"stage": children or [parent], "dvc": [parent], "group": [parent, *children]}[victim]
    except psutil.NoSuchProcess:
        return False
    hit = False
    for target in struck:
        with suppress(psutil.NoSuchProcess):
            target.send_signal(number)
            hit = True
    return hit


def finish(project: Project, targets: list[str]) -> str:
    """Run undisturbed until the pipeline has finished.

    Files that a kill of DVC left truncated are removed and reported, as docs/operations.md describes.

    Returns:
        An empty string, or the output of the last command if the pipeline never finished.
    """
    for _ in range(CALM):
        process = project.start(*repro(targets))
        try:
            output, _ = process.communicate(timeout=PATIENCE)
        except TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return f"no end after {PATIENCE} seconds\n{process.communicate()[0]}"
        if process.returncode == 0:
            return ""
        run_cache = project.folder / ".dvc/cache/runs"
        for cut in (*doctor.truncated_files(project.folder), *doctor.incomplete_cache_entries(run_cache)):
            print(f"removed, because a kill of DVC truncated it: {cut}", file=sys.stderr)
            shutil.rmtree(cut) if cut.is_dir() else cut.unlink()
        time.sleep(2)
    return output


if __name__ == "__main__":
    main()
