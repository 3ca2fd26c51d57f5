"""Copies the history of a run to TensorBoard, MLflow and Weights & Biases, as `tracking` in params.yaml asks.

No stage lists the key `tracking` in dvc.yaml, so a change of it reruns nothing. All trackers write local files under
`$SEMMAE_STATE/tracking`, where they outlive the folder of a queued experiment; nothing is sent over a network. They
get the values of the history and the parameters of the stage. They get no output of the process, environment variable,
command line, user name, host name or Git remote, because these can hold credentials.

The files of `dvc plots` do not depend on `tracking`; `history_files` writes them.
"""

import importlib.util
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from semmae.core.config import PARAMS, load_config, read_yaml
from semmae.core.locks import exclusive_lock
from semmae.core.paths import state_root

TrackerName = Literal["tensorboard", "mlflow", "wandb"]
PROJECT = "semmae"  # name of the experiment in MLflow, and of the project in W&B
MODULES: dict[TrackerName, tuple[str, ...]] = {
    "tensorboard": ("tensorboard",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
    "wandb": ("wandb",),
}


class Tracker(Protocol):
    """A run in one of the trackers."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write values after `step` steps."""

    def close(self, *, finished: bool) -> None:
        """Write all that is buffered."""


class RunTracking:
    """The trackers of a run. They are opened by the first row.

    Args:
        stage: Name of the stage; it precedes the names of the values.
        out: Output of the stage; it names the tracked run.
        params: Parameters of the stage.
        enabled: Whether this process writes: rank 0 does.

    Attributes:
        id: Name of the tracked run, which is unique. A checkpoint keeps it, so a resumed run continues its tracked run.

    Raises:
        ValueError: `tracking` names an unknown tracker, or a package is missing.
    """

    def __init__(self, stage: str, out: Path, params: Mapping[str, Any], *, enabled: bool) -> None:
        self.names = read_names() if enabled else []
        for name in self.names:
            check_installed(name)
        experiment = os.environ.get("DVC_EXP_NAME", "")
        started = time.strftime("%Y%m%d-%H%M%S")
        self.id = "-".join(filter(None, (experiment, stage, *out.parts[2:][-3:], started, str(os.getpid()))))
        self._stage, self._params = stage, dict(_flatten(params))
        self._trackers: dict[TrackerName, Tracker] = {}

    def log(self, step: int, row: Mapping[str, float]) -> None:
        """Send a row of the history to all trackers.

        Args:
            step: Number of optimizer steps done.
            row: Values by name.
        """
        for name in list(self.names):
            with self._continue_without(name):
                if name not in self._trackers:
                    self._trackers[name] = OPEN[name](self.id, self._params, step)
                self._trackers[name].log(step, {f"{self._stage}/{key}": value for key, value in row.items()})

    def close(self, *, finished: bool) -> None:
        """Close the trackers. A later `log` opens them again."""
        for name, tracker in self._trackers.items():
            with self._continue_without(name):
                tracker.close(finished=finished)
        self._trackers = {}

    @contextmanager
    def _continue_without(self, name: TrackerName) -> Iterator[None]:
        """If a tracker fails, print a warning and use it no more: the training goes on."""
        try:
            yield
        except Exception as error:
            self.names.remove(name)
            print(f"warning: {self._stage} continues without {name}, which failed: {error}", file=sys.stderr)


def read_names() -> list[TrackerName]:
    """Return the trackers that params.yaml lists under `tracking`; none if it has no such key.

    Raises:
        ValueError: The list has an unknown name.
    """
    if not PARAMS.exists() or "tracking" not in read_yaml():
        return []
    return load_config(list[TrackerName], "tracking")


def check_installed(name: TrackerName) -> None:
    """Raise ValueError if a package that a tracker needs is missing."""
    missing = [module for module in MODULES[name] if importlib.util.find_spec(module) is None]
    if missing:
        raise ValueError(
            f"tracking lists {name}, which needs a package that is not installed: {missing[0]}. "
            f"Run: pip install 'semmae[{name}]', or remove {name} from tracking in params.yaml"
        )


def tracking_root() -> Path:
    """Return the folder of all tracked runs; create it if it is missing."""
    root = state_root() / "tracking"
    root.mkdir(exist_ok=True)
    return root


class TensorBoardTracker:
    """A run in TensorBoard; view it with `tensorboard --logdir`."""

    def __init__(self, run_id: str, params: Mapping[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = tracking_root() / "tensorboard" / run_id
        resumed = folder.exists()
        # Steps from `purge_step` on were logged by a process that was killed before it saved a checkpoint.
        self._writer = SummaryWriter(str(folder), purge_step=step)
        if not resumed:
            table = "\n".join(f"| {name} | {value} |" for name, value in params.items())
            self._writer.add_text("parameters", f"| parameter | value |\n|---|---|\n{table}")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write values after `step` steps."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, *, finished: bool) -> None:
        """Close the event file."""
        self._writer.close()


class MLflowTracker:
    """A run in an SQLite database of MLflow; view it with `mlflow ui --backend-store-uri`."""

    def __init__(self, run_id: str, params: Mapping[str, Any], step: int) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        from mlflow import MlflowClient
        from mlflow.entities import Param

        with exclusive_lock("tracking", "mlflow", wait=True):  # one process creates the tables
            self._client = MlflowClient(tracking_uri=f"sqlite:///{tracking_root() / 'mlflow.db'}")
            experiment = self._client.get_experiment_by_name(PROJECT)
            experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(PROJECT)
        earlier = self._client.search_runs([experiment_id], f"attributes.run_name = '{run_id}'")
        run = earlier[0] if earlier else self._client.create_run(experiment_id, run_name=run_id)
        self._id = run.info.run_id
        if earlier:
            self._client.update_run(self._id, status="RUNNING")
        else:
            entries = [Param(name, str(value)) for name, value in params.items()]
            for start in range(0, len(entries), 100):  # the largest batch of MLflow
                self._client.log_batch(self._id, params=entries[start : start + 100])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write values after `step` steps."""
        from mlflow.entities import Metric

        now = round(1000 * time.time())
        self._client.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def close(self, *, finished: bool) -> None:
        """Set the status of the run."""
        self._client.set_terminated(self._id, status="FINISHED" if finished else "KILLED")


class WandbTracker:
    """A run of Weights & Biases in offline mode; `wandb sync` uploads it."""

    def __init__(self, run_id: str, params: Mapping[str, Any], step: int) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        settings = wandb.Settings(
            silent=True, console="off", disable_git=True, disable_code=True, x_disable_meta=True, x_disable_stats=True,
            x_disable_machine_info=True, x_save_requirements=False,
        )  # fmt: skip
        self._run = wandb.init(
            mode="offline", dir=str(tracking_root()), project=PROJECT, id=run_id, name=run_id, config=dict(params),
            settings=settings,
        )  # fmt: skip

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write values after `step` steps."""
        self._run.log(dict(values), step=step)

    def close(self, *, finished: bool) -> None:
        """Finish the run."""
        self._run.finish(exit_code=0 if finished else 1)


OPEN: dict[TrackerName, Callable[[str, Mapping[str, Any], int], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "mlflow": MLflowTracker,
    "wandb": WandbTracker,
}


def _flatten(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) for each value of a section; a list is one value."""
    for name, value in section.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
