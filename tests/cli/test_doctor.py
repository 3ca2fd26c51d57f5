"""`semmae doctor` finds the problems of a machine, gives a remedy for each, and reports no false problems."""

import subprocess
from pathlib import Path

import pytest

from semmae.cli import doctor


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh repository of Git and DVC, of a user with a name."""
    for key in ("HOME", "XDG_CONFIG_HOME", "DVC_SITE_CACHE_DIR", "DVC_GLOBAL_CONFIG_DIR", "DVC_SYSTEM_CONFIG_DIR"):
        monkeypatch.setenv(key, str(tmp_path / "home"))
    folder = tmp_path / "project"
    git(folder, "init", "--quiet", str(folder), inside=False)
    git(folder, "config", "user.name", "somebody")
    git(folder, "config", "user.email", "somebody@example.org")
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text("[core]\n    analytics = false\n    check_update = false\n")
    return folder


def git(folder: Path, *command: str, inside: bool = True) -> None:
    subprocess.run(["git", *(["-C", str(folder)] if inside else []), *command], check=True)


def examine(project: Path) -> dict[str, doctor.Check]:
    return {check.subject: check for check in doctor.examine(project)}


def test_a_healthy_machine_has_no_failed_check(project: Path):
    checks = examine(project)
    assert {"packages", "disk of the data", "disk of the state root", "state root", "git", "dvc", "processor"} == set(
        checks
    )
    assert not [check for check in checks.values() if check.verdict == "fail"]
    assert {checks[subject].verdict for subject in ("packages", "git", "dvc")} == {"ok"}


def test_every_problem_is_found_and_has_a_remedy(project: Path, state_root: Path, monkeypatch: pytest.MonkeyPatch):
    git(project, "config", "--unset", "user.name")
    (project / ".dvc/config").write_text("[cache]\n    type = hardlink\n['remote \"lab\"']\n    url = /lab\n")
    (project / ".dvc/tmp").mkdir()
    (project / ".dvc/tmp/rwlock").write_text("")
    (project / "dvc.lock").write_text("")
    state_root.mkdir(exist_ok=True)
    state_root.chmod(0o777)
    monkeypatch.setattr(doctor, "requires", lambda _: ["torch>=99", "no-such-package", "pytest>=8; extra == 'dev'"])
    monkeypatch.setattr(doctor, "LOW_SPACE", float("inf"))
    checks = examine(project)
    assert {subject: check.verdict for subject, check in checks.items() if check.verdict != "ok"} == {
        "packages": "fail", "disk of the data": "warn", "disk of the state root": "warn", "state root": "fail",
        "git": "warn", "rwlock": "fail", "dvc.lock": "fail", "dvc": "warn", "dvc cache": "warn",
        "dvc remote lab": "warn",
    } | ({"processor": "warn"} if checks["processor"].verdict == "warn" else {})  # fmt: skip
    assert "no-such-package is missing" in checks["packages"].finding
    assert checks["dvc remote lab"].remedy == "dvc remote modify lab verify true"
    assert all(check.remedy for check in checks.values() if check.verdict != "ok")


def test_a_folder_without_git_and_dvc_fails(tmp_path: Path):
    checks = examine(tmp_path)
    assert (checks["git"].verdict, checks["dvc"].verdict) == ("fail", "fail")
