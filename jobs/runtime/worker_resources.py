"""Resources of workers. Does not import Ray, so that commands can run without it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WorkerResources:
    """Resources per worker: CPUs without fractions, and a GPU if available.

    With 0 workers, the resources of the command's own process.
    """

    workers: int
    cpus: int
    gpus: int

    @property
    def resources(self) -> dict[str, int]:
        """The resources as a Ray resource request."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})

    def __str__(self) -> str:
        device = "a GPU" if self.gpus else f"{self.cpus} CPU{'s' if self.cpus > 1 else ''}"
        if self.workers == 0:
            return f"{device} in this process"
        return f"{'1 worker' if self.workers == 1 else f'{self.workers} workers'} with {device} each"
