"""The stages of the pipeline, one file each, run as `python -m stages.<name>`; see dvc.yaml for what reads what."""

import os

# Threads that spin while they wait for each other starve whoever shares their cores (a step of 0.15 s took 6 s
# beside one other process on two cores). OpenMP reads this once, when torch is first imported, so it stands before
# any import of it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
