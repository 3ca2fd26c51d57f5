"""The machine that a project runs on, as far as its settings depend on it."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """Processors, memory and disk.

    Attributes:
        gpus: The name and the memory in bytes of each GPU.
        cores: Number of CPU cores that this process may use.
        memory: Memory of the machine in bytes.
        free_disk: Free bytes on the disk of the project.
    """

    gpus: list[tuple[str, int]]
    cores: int
    memory: int
    free_disk: int

    @property
    def has_gpu(self) -> bool:
        """Whether stages run on a GPU with `device: auto`."""
        return bool(self.gpus)

    def describe(self) -> str:
        """Describe the machine in a line."""
        cores = f"{self.cores} CPU cores, {self.memory / 2**30:.0f} GiB of memory, {self.free_disk / 1e9:.0f} GB free"
        if not self.gpus:
            return f"no GPU; {cores}"
        name, memory = self.gpus[0]
        return f"{len(self.gpus)} x {name} ({memory / 2**30:.0f} GiB); {cores}"


def inspect_machine(folder: Path) -> Machine:
    """Inspect this machine; `folder` is on the disk of the project, and need not exist."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    properties = [torch.cuda.get_device_properties(index) for index in range(count)]
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return Machine(
        gpus=[(device.name, device.total_memory) for device in properties],
        cores=len(os.sched_getaffinity(0)),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        free_disk=shutil.disk_usage(existing).free,
    )
