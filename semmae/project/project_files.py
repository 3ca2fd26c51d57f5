"""Write a project: params.yaml, dvc.yaml, .gitignore, README.md and DVC's configuration."""

import subprocess
from pathlib import Path

from semmae.core.atomic_files import atomic_write, write_json
from semmae.core.renamed_keys import EVALUATIONS
from semmae.project.params_file import REPOSITORY_FILE
from semmae.project.pipeline_file import project_pipeline
from semmae.project.summary import Row

RAW = Path("data/raw")
ESTIMATE = Path("data/estimate.json")  # predicted seconds by stage
GITIGNORE = (
    "/data/*\n/results/report/\n/results/compare/\n/results/*/predictions/\n/results/*/examples/\n__pycache__/\n"
)
DVC_CONFIG = "[core]\n    analytics = false\n    check_update = false\n    autostage = false\n"
NO_SCM = "    no_scm = true\n"
README = """\
# {title}

Written by `semmae init`{source}.

```sh
semmae run                                                 # all stages; run it again to continue a stopped run
semmae show parts --dataset main --out parts.png           # the parts of some images
semmae export data/pretrain --to timm --out encoder-timm   # the encoder, for timm; or --to transformers
```

The report of a run is `results/report/index.html`.
The parameters are in `params.yaml`; `semmae run` repeats only what a change affects.
{tables}"""


def write_project(
    folder: Path, params: str, tables: dict[str, list[Row]], costs: dict[str, float], *, source: str = ""
) -> None:
    """Write a project to a folder.

    Args:
        folder: The folder; it is created if it does not exist.
        params: The text of params.yaml.
        tables: Tables for README.md, by title.
        costs: Predicted seconds by stage; {} if they are unknown.
        source: Tells in README.md what the project was made for.

    Raises:
        ValueError: The folder has a project.
    """
    check_folder(folder)
    (folder / RAW).mkdir(parents=True, exist_ok=True)
    (folder / ".dvc").mkdir(exist_ok=True)
    for stage in EVALUATIONS:  # the report depends on the folder of each evaluation, also of one without a dataset
        (folder / "results" / stage).mkdir(parents=True, exist_ok=True)
        (folder / "results" / stage / ".gitkeep").touch()
    title = folder.absolute().name
    body = "".join(f"\n## {name}\n\n{markdown_table(rows)}" for name, rows in tables.items())
    files = {
        "params.yaml": params,
        "dvc.yaml": project_pipeline(),
        ".gitignore": GITIGNORE,
        "README.md": README.format(title=title, source=source, tables=body),
        ".dvc/config": DVC_CONFIG if is_in_git(folder) else DVC_CONFIG + NO_SCM,
        ".dvc/.gitignore": "/config.local\n/tmp\n/cache\n",
        ".dvcignore": "",
    }
    for name, text in files.items():
        if name not in (".gitignore", "README.md") or not (folder / name).exists():
            with atomic_write(folder / name) as temporary:
                temporary.write_text(text)
    if costs:
        write_json(folder / ESTIMATE, {stage: round(seconds) for stage, seconds in costs.items()})


def check_folder(folder: Path) -> None:
    """Raise ValueError if a project cannot be written to a folder."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; expected a folder, which may be new")
    if existing := [name for name in ("params.yaml", "dvc.yaml") if (folder / name).exists()]:
        raise ValueError(f"{folder} has {' and '.join(existing)} already; choose another folder, or remove them")


def locate_masks(folder: Path, images: Path, masks: Path | None) -> tuple[Path, str | None]:
    """Find the folder of masks in the tree of the images.

    If the masks are elsewhere, make a tree of links to both, in data/raw of the project.

    Args:
        folder: The folder of the project.
        images: The folder or tar of the images, absolute.
        masks: The folder of the masks: relative to the images, or a path; a name in the tar. None: there are none.

    Returns:
        The tree, and the folder of masks in it.

    Raises:
        ValueError: There is no such folder.
    """
    if masks is None:
        return images, None
    if not images.is_dir() or (not masks.is_absolute() and (images / masks).is_dir()):
        return images, masks.as_posix()
    outside = masks.expanduser().absolute()
    if not outside.is_dir():
        raise ValueError(
            f"--masks {masks} is no folder, neither in {images} nor here; expected the folder of the masks"
        )
    if outside.is_relative_to(images):
        return images, outside.relative_to(images).as_posix()
    tree = folder.absolute() / RAW / images.name
    tree.mkdir(parents=True, exist_ok=True)
    for name, target in (("images", images), ("masks", outside)):
        if not (tree / name).exists():
            (tree / name).symlink_to(target)
    return tree, "masks"


def default_params() -> str:
    """Return the params.yaml of the demo."""
    return REPOSITORY_FILE.read_text()


def is_in_git(folder: Path) -> bool:
    """Return whether an existing folder is in a Git repository."""
    command = ["git", "-C", str(folder), "rev-parse", "--is-inside-work-tree"]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


def start_git(folder: Path) -> bool:
    """Make a folder a Git repository; return False if Git is not installed."""
    try:
        return subprocess.run(["git", "init", "--quiet", str(folder)], capture_output=True).returncode == 0
    except OSError:
        return False


def commit(folder: Path) -> bool:
    """Commit the files of a new project; return False if Git lacks a name or an email address for commits."""
    names = ["params.yaml", "dvc.yaml", ".gitignore", "README.md", ".dvc/config", ".dvc/.gitignore", ".dvcignore"]
    add = subprocess.run(["git", "-C", str(folder), "add", *names, "results"], capture_output=True)
    message = "Start a semmae project"
    result = subprocess.run(["git", "-C", str(folder), "commit", "--quiet", "-m", message], capture_output=True)
    return add.returncode == 0 and result.returncode == 0


def markdown_table(rows: list[Row]) -> str:
    """Return rows as a Markdown table."""
    lines = ["| | | |", "|---|---|---|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
