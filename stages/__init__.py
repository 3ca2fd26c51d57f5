"""The stages of the pipeline, one file each, run as `python -m stages.<name>`; see dvc.yaml for their inputs and outputs."""

import os

# OpenMP threads must not spin while they wait: on two cores shared with one other process, a step of 0.15 s took 6 s.
# OpenMP reads this variable once, when torch is first imported. `python -m stages.<name>` imports this file before the
# stage, and with it torch, so the setting has no later place.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
