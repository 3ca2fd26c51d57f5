"""Importing the package changes no setting of the process; entry points do."""

import subprocess

from tests import warm
from tests.imports import ROOT

PROGRAM = """
import importlib, os, pkgutil, resource, signal
import cv2, torch
import semmae

def settings():
    os.umask(umask := os.umask(0))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    return umask, handlers, limits, dict(os.environ), cv2.getNumThreads(), torch.get_num_threads()

before = settings()
for module in pkgutil.walk_packages(semmae.__path__, "semmae."):
    if module.name != "semmae.__main__":
        importlib.import_module(module.name)
print(settings() == before)
"""


def test_an_import_changes_no_setting_of_the_process():
    process = subprocess.run([warm.commands() / "python", "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True)
    assert process.stdout == "True\n", process.stderr
