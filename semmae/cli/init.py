"""`semmae init`: make a project for a folder of images, with settings that fit the images and the machine."""

import re
import time
from pathlib import Path
from typing import Annotated

import typer

from semmae.cli.output import console, new_table

UNITS = {"m": 60, "h": 3600, "d": 86_400}
DEFAULT_BUDGET = "30m"


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of the project, which may be new.")],
    images: Annotated[Path | None, typer.Option(help="Your images: a folder, or a plain tar.")] = None,
    labels: Annotated[bool, typer.Option("--labels", help="The names of folders are classes.")] = False,
    masks: Annotated[Path | None, typer.Option(help="The folder of masks, within the images or elsewhere.")] = None,
    mask_kind: Annotated[str | None, typer.Option(help="foreground, parts or classes; default: by the masks.")] = None,
    mask_names: Annotated[str | None, typer.Option(help="Names of the values of masks, such as sky,road,car.")] = None,
    budget: Annotated[str, typer.Option(help="The time of a run, such as 30m, 2h or 1d.")] = DEFAULT_BUDGET,
    teacher: Annotated[
        str | None, typer.Option(help="A timm model with published weights, or mae; default: see the docs.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="A file with the weights of the teacher.")] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Make the demo, which draws its own images.")] = False,
) -> None:
    """Make a project for your images: look at them and at the machine, choose settings, and predict the cost."""
    seconds = parse_time(budget)
    if demo == (images is not None):
        raise ValueError("give either --images PATH, your images, or --demo")
    startup = import_as_a_stage()
    from semmae.project import project_files

    project_files.check_folder(folder)
    if images is None:
        write(folder, project_files.default_params(), {}, {}, source=" --demo")
        return
    from semmae.project import image_survey, mask_survey

    kind = mask_survey.check_kind(mask_kind)
    root, mask_folder = project_files.locate_masks(folder, images.expanduser().absolute(), masks)
    survey = image_survey.survey_images(root, mask_folder=mask_folder)
    image_survey.check_labels(survey, labels=labels)
    names = mask_names.split(",") if mask_names else None
    found = None
    if mask_folder is not None:
        found = mask_survey.survey_masks(root, survey.kind, mask_folder, mask_kind=kind, names=names)
    from semmae.project import plan, published, summary
    from semmae.project.machine import inspect_machine
    from semmae.project.params_file import project_params

    tables = {"Images": summary.describe_images(survey, found, labels=labels)}
    print_table("images", tables["Images"])
    machine = inspect_machine(folder.absolute())
    request = plan.Request(survey, found, labels, published.choose_teacher(teacher, weights), seconds)
    with console.status("measuring the speed of this machine"):
        planned = plan.make_plan(request, machine, startup)
    tables["Settings"] = summary.describe_choices(planned, request)
    tables["Cost"] = summary.describe_cost(planned, machine, request)
    print_table("settings", tables["Settings"])
    print_table("cost", tables["Cost"])
    raw = folder.absolute() / project_files.RAW
    params = project_params(planned.settings, survey, found, labels=labels, raw=raw)
    write(folder, params, tables, planned.costs, source=f" for the images in `{images}`")


def import_as_a_stage() -> float:
    """Import what a stage imports; return the seconds that it took, most of the time in which a stage starts."""
    start = time.perf_counter()
    import stages.pretrain  # noqa: F401

    return time.perf_counter() - start


def parse_time(text: str) -> float:
    """Return the seconds of a time such as 30m; raise ValueError if it is not one."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([mhd])", text.strip())
    if match is None or float(match[1]) == 0:
        raise ValueError(f"--budget is {text!r}; expected a number and a unit: m (minutes), h or d, such as 30m")
    return float(match[1]) * UNITS[match[2]]


def write(folder: Path, params: str, tables: dict, costs: dict[str, float], *, source: str) -> None:
    """Write the project, start a Git repository for it, and tell how to go on."""
    from semmae.project import project_files

    folder.mkdir(parents=True, exist_ok=True)
    is_in_repository = project_files.is_in_git(folder)
    is_new_repository = not is_in_repository and project_files.start_git(folder)
    project_files.write_project(folder, params, tables, costs, source=source)
    if is_in_repository:
        console.print("the folder is in a Git repository: commit the project before experiments (dvc exp)")
    elif not is_new_repository:
        console.print("Git is not installed: the pipeline works, but experiments (dvc exp) need Git")
    elif not project_files.commit(folder):
        console.print("nothing is committed yet: set user.name and user.email in Git, then commit, for experiments")
    console.print(f"\nproject in {folder}; next: cd {folder} && semmae run", soft_wrap=True)


def print_table(title: str, rows: list) -> None:
    """Print rows of a summary."""
    table = new_table(title, "", "", "")
    table.show_header = False
    for row in rows:
        table.add_row(*row)
    console.print(table)
