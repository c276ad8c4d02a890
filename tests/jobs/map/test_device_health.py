"""Which failures are a device's and which are a tile's."""

from __future__ import annotations

from jobs.map.device_health import Device, DeviceHealth, format_all_failed, format_given_up
from pipeline.grid import Tile
from tests.support.ledgers import WINDOWS

A, B = Device("node", "host, GPU 0"), Device("node", "host, GPU 1")
ONE, TWO, THREE, FOUR = (Tile("scene", window) for window in WINDOWS)


def test_device_that_fails_twice_in_a_row_is_given_up() -> None:
    health = DeviceHealth(2)
    assert health.failed(A, ONE, "why") == "again"
    health.worked(B)
    assert health.failed(A, TWO, "still") == "device"
    assert health.given_up == {A: "still"}


def test_device_that_works_in_between_is_kept() -> None:
    health = DeviceHealth(2)
    for tile in (ONE, TWO, THREE):
        assert health.failed(A, tile, "why") == "again"
        health.worked(A)
    assert not health.given_up


def test_tile_that_fails_two_devices_is_the_cause() -> None:
    health = DeviceHealth(2)
    assert health.failed(A, ONE, "why") == "again"
    health.worked(A)
    assert health.failed(B, ONE, "why") == "tile"
    assert health.failed(B, TWO, "why") == "again", "the tile's failure does not count against the device"


def test_tiles_are_not_blamed_for_a_device_that_was_given_up() -> None:
    health = DeviceHealth(3)
    health.failed(A, ONE, "why")
    assert health.failed(A, TWO, "why") == "device"
    assert health.failed(B, ONE, "another") == "again"


def test_single_device_is_given_up_unless_it_maps_other_tiles() -> None:
    health = DeviceHealth(1)
    assert health.failed(A, ONE, "why") == "again"
    assert health.failed(A, ONE, "why") == "device"
    health = DeviceHealth(1)
    health.failed(A, ONE, "why")
    health.worked(A)
    assert health.failed(A, ONE, "why") == "tile"


def test_messages_name_devices_causes_and_the_remedy() -> None:
    assert format_given_up(A, "why", 3) == "host, GPU 0 failed 2 times in a row (why); the map continues with 3 workers"
    assert format_given_up(A, "why", 0).endswith("no device is left")
    text = format_all_failed([B, A], 4)
    assert text.startswith("every device of this map failed (host, GPU 0, host, GPU 1). Finished tiles are kept; 4 tiles")
    assert "none counts as failed" in text
    assert "`mibf rerun`" in text
