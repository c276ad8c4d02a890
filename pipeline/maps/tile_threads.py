"""How many threads of a worker read and write tiles, and how many tiles it holds: bounded, and derived from its cores."""

from __future__ import annotations

from dataclasses import dataclass

#: Tiles that were read before a GPU needs them: one in memory, one on its way to the GPU or there.
AHEAD = 2


@dataclass(frozen=True)
class TileThreads:
    """Threads of one worker, and the tiles that it holds at most."""

    readers: int  #: threads that read, decode and normalize
    ahead: int  #: tiles that were read and wait
    writers: int  #: threads that compress and write

    @classmethod
    def of(cls, device: str, cpus: int) -> TileThreads:
        """Return the threads of a worker with a device of a type ("cpu", "cuda") and so many CPUs of its own.

        On a CPU all cores compute, and one thread reads one tile ahead, which takes a few percent of the time. A GPU
        needs the cores for nothing else: half of them read, a quarter write, and the rest is for the thread that
        launches the GPU's work, the pages of files, and Zarr's own threads.
        """
        if device == "cpu":
            return cls(readers=1, ahead=0, writers=1)
        return cls(readers=max(1, cpus // 2), ahead=AHEAD, writers=max(1, cpus // 4))

    @property
    def inputs(self) -> int:
        """Inputs of tiles in memory at a time: those being read, those that wait, and the one being computed."""
        return self.readers + self.ahead + 1

    @property
    def results(self) -> int:
        """Results of tiles in memory at a time: the one being computed, and those being written."""
        return 1 + self.writers

    @property
    def tiles(self) -> int:
        """Tiles in memory at a time, in any state."""
        return self.inputs + self.writers
