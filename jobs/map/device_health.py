"""Distinguish failed devices from tiles that no device can map. Pure functions of what was reported; does not import Ray."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, NamedTuple

from jobs.runtime.progress import pluralize
from pipeline.grid import Tile

#: What a failure means: the tile fails on any device; the device is given up; or both are tried again.
Verdict = Literal["tile", "device", "again"]
#: Failures in a row after which a device is given up, and devices on which a tile fails before it counts as failed.
FAILURES = 2
#: How the warning about a worker that died begins.
WORKER_REPLACED = "a map worker died and was replaced"


class Device(NamedTuple):
    """A device that Ray assigned to a worker."""

    node: str  #: id of the Ray node
    name: str  #: for people; unique on the node


class DeviceHealth:
    """The device failures of one attempt at a map's tiles, on a number of devices."""

    def __init__(self, devices: int) -> None:
        self.given_up: dict[Device, str] = {}  #: devices given up, each with its last failure
        self._devices = devices
        self._in_a_row: dict[Device, int] = {}
        self._worked: set[Device] = set()
        self._failed_on: dict[Tile, list[Device]] = {}

    def worked(self, device: Device) -> None:
        """Record that a device computed a tile."""
        self._in_a_row.pop(device, None)
        self._worked.add(device)

    def failed(self, device: Device, tile: Tile, cause: str) -> Verdict:
        """Record that a device failed at a tile; return what follows from it.

        A device fails in a new process each time. It is given up after `FAILURES` failures without a tile in between. A tile
        fails if it made that many devices fail that are not given up; where there is one device, if that device maps others.
        """
        on = self._failed_on.setdefault(tile, [])
        on.append(device)
        others = {other for other in on if other not in self.given_up}
        if len(others) >= FAILURES or (self._devices == 1 and len(on) >= FAILURES and device in self._worked):
            self._in_a_row.pop(device, None)
            return "tile"
        self._in_a_row[device] = self._in_a_row.get(device, 0) + 1
        if self._in_a_row[device] >= FAILURES:
            self.given_up[device] = cause
            return "device"
        return "again"


def format_given_up(device: Device, cause: str, workers: int) -> str:
    """Say that a device was given up, and how many workers are left."""
    left = "no device is left" if not workers else f"the map continues with {pluralize(workers, 'workers')}"
    return f"{device.name} failed {FAILURES} times in a row ({cause}); {left}"


def format_replaced(device: Device) -> str:
    """Say that a worker died."""
    return (
        f"{WORKER_REPLACED} ({device.name}); its tiles are mapped again. If this repeats, its machine may lack memory: "
        "use fewer workers or smaller tiles."
    )


def format_all_failed(devices: Collection[Device], tiles: int) -> str:
    """Say that every device failed, and what to do."""
    names = ", ".join(sorted(device.name for device in devices))
    return (
        f"every device of this map failed ({names}). Finished tiles are kept; {pluralize(tiles, 'tiles')} are left, and "
        "none counts as failed. Check the devices (for GPUs: nvidia-smi, and the kernel's log for Xid errors), then run "
        "`mibf rerun`."
    )
