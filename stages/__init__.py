"""The stages of the pipeline, one module each. Run a stage as `python -m stages.<name>`; dvc.yaml lists its files."""

import os

# OpenMP threads must not spin while they wait. With spinning threads, on two cores that another process shares, a step
# took 6 s instead of 0.15 s. OpenMP reads this variable once, when torch is first imported. Python imports this file
# before the module of the stage, which imports torch.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
