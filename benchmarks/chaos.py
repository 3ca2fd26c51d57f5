"""Run the toy pipeline under random signals, and compare its files with those of an undisturbed run.

    python -m benchmarks.chaos --kills 200 [--seed 0] [--targets pretrain] [--undisturbed FOLDER] [--folder FOLDER]

While `dvc repro` runs, this program sends SIGKILL, SIGTERM or SIGINT at a random time to the stage, to `dvc`, or to
both. Then it runs the same command again. When the pipeline has finished, it compares the files bit by bit with those
of an undisturbed run. It repeats this with new projects until it has sent `--kills` signals. Stages are forked from a
process that has loaded torch (`tests/warm.py`), so that few signals arrive during the import of torch.

The last line is `kills K, artifacts A, differing D, wedged W`: A files were compared, D of them differ or are missing,
and W rounds did not finish after the last signal ("wedged"). The exit status is 1 if D or W is not 0.
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
MAX_ATTEMPTS = 20  # undisturbed commands that may fail in a row
TIMEOUT = 1800  # seconds per command
OUTPUT_FOLDERS = ("data", "results")


def main() -> None:
    """Run the pipeline under signals, in one round after another, until enough signals were sent."""
    options = parse_arguments()
    rng, sent, compared, differing, wedged = random.Random(options.seed), 0, 0, 0, 0
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="chaos-") as temporary:
        root = Path(temporary)
        undisturbed = (
            Project(options.undisturbed)
            if options.undisturbed
            else run_undisturbed(create(root / "undisturbed"), options.targets)
        )
        expected = digests(undisturbed, options.targets)
        while sent < options.kills:
            project = create(root / f"round-{sent}")
            sent += disturb(project, options.targets, options.kills - sent, options.gap, rng)
            if output := finish(project, options.targets):
                wedged += 1
                moved = shutil.move(project.root, tempfile.mkdtemp(prefix="wedged-"))
                print(f"wedged: the project is kept in {moved}; output of the last command:\n{output}", file=sys.stderr)
                continue
            actual = digests(project, options.targets)
            different = sorted(
                path for path in expected.keys() | actual.keys() if expected.get(path) != actual.get(path)
            )
            for path in different:
                print(f"differs: {path}", file=sys.stderr)
            compared, differing = compared + len(expected), differing + len(different)
            shutil.rmtree(project.root)
    print(f"kills {sent}, artifacts {compared}, differing {differing}, wedged {wedged}")
    raise SystemExit(bool(differing or wedged))


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=10, help="number of signals to send")
    parser.add_argument("--seed", type=int, default=0, help="seed of the times, signals and receivers")
    parser.add_argument("--gap", type=float, default=8.0, help="longest time between two signals, in seconds")
    parser.add_argument("--targets", nargs="*", default=[], help="stages to bring up to date; all by default")
    parser.add_argument("--undisturbed", type=Path, help="a finished toy project to compare with")
    parser.add_argument(
        "--folder", type=Path, help="folder of the projects; default: the temporary folder of the system"
    )
    return parser.parse_args()


def run_undisturbed(project: Project, targets: list[str]) -> Project:
    """Run the pipeline undisturbed and return the project."""
    project.dvc("repro", *targets)
    return project


def digests(project: Project, targets: list[str]) -> dict[str, str]:
    """Return the digests of all outputs of the targets and of the stages before them. No targets: of all stages."""
    stage_outputs = outputs(project, targets)
    files = [path for folder in OUTPUT_FOLDERS for path in (project.folder / folder).rglob("*") if path.is_file()]
    inside = {path.relative_to(project.folder): path for path in files}
    return {
        str(name): file_digest(path) for name, path in sorted(inside.items())
        if any(name.is_relative_to(folder) for folder in stage_outputs)
    }  # fmt: skip


def outputs(project: Project, targets: list[str]) -> list[str]:
    """Return the output paths of the targets and of the stages before them, from the graph of DVC."""
    from dvc.repo import Repo

    with chdir(project.folder):  # DVC looks up targets in the working folder
        repo = Repo()
        stages = {stage for target in targets or [None] for stage in repo.stage.collect(target, with_deps=True)}
    return [str(Path(out.fs_path).relative_to(project.folder)) for stage in stages for out in stage.outs]


def disturb(project: Project, targets: list[str], kills: int, gap: float, rng: random.Random) -> int:
    """Run `dvc repro` repeatedly, with a signal at a random time in each run.

    Stops when `kills` signals were sent, or when a run finishes before its signal.

    Returns:
        The number of signals sent.
    """
    sent = 0
    while sent < kills:
        process = project.start(*repro_command(targets), out=DEVNULL)
        kill_time = time.monotonic() + rng.uniform(0, gap)
        while process.poll() is None and time.monotonic() < kill_time:
            time.sleep(0.05)
        if process.poll() is not None:
            return sent
        sent += send_signal(process, rng.choice(SIGNALS), rng.choice(VICTIMS))
        try:
            process.wait(TIMEOUT)
        except TimeoutExpired:  # `finish` reports it
            return sent
    return sent


def repro_command(targets: list[str]) -> tuple[str, ...]:
    """Return the command that updates the targets."""
    return sys.executable, "-m", "dvc", "repro", *targets


def send_signal(process: Popen[str], number: signal.Signals, victim: str) -> bool:
    """Send the signal to the stage that `dvc` runs, to `dvc`, or to both. If `dvc` runs no stage, it is the receiver.

    Returns:
        Whether a process received the signal.
    """
    try:
        parent = psutil.Process(process.pid)
        children = parent.children(recursive=True)
        receivers = {"stage": children or [parent], "dvc": [parent], "group": [parent, *children]}[victim]
    except psutil.NoSuchProcess:
        return False
    received = False
    for target in receivers:
        with suppress(psutil.NoSuchProcess):
            target.send_signal(number)
            received = True
    return received


def finish(project: Project, targets: list[str]) -> str:
    """Run `dvc repro` without signals until the pipeline has finished.

    If a kill of DVC left truncated files, this function removes and reports them, as docs/operations.md describes.

    Returns:
        An empty string, or the output of the last command if the pipeline never finished.
    """
    for _ in range(MAX_ATTEMPTS):
        process = project.start(*repro_command(targets))
        try:
            output, _ = process.communicate(timeout=TIMEOUT)
        except TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return f"not finished after {TIMEOUT} seconds\n{process.communicate()[0]}"
        if process.returncode == 0:
            return ""
        run_cache = project.folder / ".dvc/cache/runs"
        for truncated in (*doctor.truncated_files(project.folder), *doctor.incomplete_cache_entries(run_cache)):
            print(f"removed, because a kill of DVC truncated it: {truncated}", file=sys.stderr)
            shutil.rmtree(truncated) if truncated.is_dir() else truncated.unlink()
        time.sleep(2)
    return output


if __name__ == "__main__":
    main()
