"""Every stage checks the lease directly before each step that cannot be undone; a run that lost it changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from jobs.workflow import runner
from pipeline.io import storage
from pipeline.io.lease import Lease, LeaseLostError
from pipeline.maps import ledger
from tests.support.mapped_scene import Mapped

pytestmark = pytest.mark.slow
#: Functions of `storage` that change files, each with the position of the argument that is changed.
CHANGES = {"write_bytes": 0, "create_bytes": 0, "remove": 0, "move": 1, "move_file": 1, "publish": 1}
#: Folders and files that only the run itself uses: made aside, replaced shard by shard, or to probe the file system.
OWN = ("/.staging-", "/.mibf-", ".zarr.new", "/tensorboard", "/events.out")
#: A training with several checkpoints, of which old ones are removed.
TRAIN = ("train.checkpoint_steps=10", "train.log_steps=10", "train.seeds=[1, 2]")


class Recorder(Lease):
    """Lease that records its checks among the changes of files, and is lost at the check number `lost_at`."""

    def __init__(self, lost_at: int = 0) -> None:
        self.events: list[str] = []
        self.lost_at = lost_at

    def check(self) -> None:
        self.events.append("check")
        if 0 < self.lost_at <= self.events.count("check"):
            raise LeaseLostError("another run took over")

    def unchecked(self) -> list[str]:
        """The changes that no check directly precedes."""
        pairs = zip(["", *self.events], self.events, strict=False)
        return [event for before, event in pairs if event != "check" and before != "check"]


@contextmanager
def recorded(lease: Recorder) -> Iterator[None]:
    """Run stages with this lease, and record their changes of files."""

    @contextmanager
    def acquire(*_: Any, **__: Any) -> Iterator[Lease]:
        yield lease

    inside: list[str] = []

    def recording(name: str, position: int) -> Callable[..., Any]:
        real = getattr(storage, name)

        def call(*arguments: Any, **named: Any) -> Any:
            url = arguments[position]
            if not inside and not any(part in url for part in OWN):
                lease.events.append(f"{name} {url}")
            inside.append(name)  # changes that are part of this one, as the removal of what is replaced
            try:
                return real(*arguments, **named)
            finally:
                inside.pop()

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "acquire", acquire)
        for name, position in CHANGES.items():
            patch.setattr(storage, name, recording(name, position))
        yield


@pytest.fixture
def mapped(reference: Mapped, tmp_path: Path) -> Mapped:
    """A private copy of the scene with a model and a published map."""
    return reference.copy(tmp_path / "scene")


STAGES = [("prepare", "prepare.shard=256"), ("train", "--restart", *TRAIN), ("evaluate",)]


@pytest.mark.parametrize("command", STAGES, ids=lambda command: command[0])
def test_every_change_is_directly_preceded_by_a_check(mapped: Mapped, command: tuple[str, ...]) -> None:
    lease = Recorder()
    with recorded(lease):
        mapped.does(*command)
    assert len(lease.events) > 3
    assert lease.unchecked() == []
    if command[0] == "train":
        check_loss_before_the_model_is_written(mapped)


def check_loss_before_the_model_is_written(mapped: Mapped) -> None:
    """Take the lease from a training whose seeds are complete, directly before each file of the models."""
    work = mapped.folder / "work"
    models = {path: path.stat().st_mtime_ns for path in (work / "models").rglob("*") if path.is_file()}
    for at in (1, 5, 7):
        (work / "runs/main/manifests/train.json").unlink(missing_ok=True)
        lease = Recorder(at)
        with recorded(lease):
            lost = mapped.does("train", *TRAIN, status=4)
        assert "another run took over" in lost.stderr
        assert lease.events[-1] == "check", "nothing was changed after the loss"
        written = [event for event in lease.events if "/models/" in event]
        changed = [path for path, before in models.items() if path.stat().st_mtime_ns != before]
        assert len(changed) == len(written)
        assert not (work / "runs/main/manifests/train.json").exists()
    assert written, "the last loss was between two files of a model"


def test_map_checks_its_lease_before_every_change_and_keeps_the_published_map_when_lost(
    mapped: Mapped, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "FLUSH_SECONDS", math.inf)  # both runs then write the ledger, and check, equally often
    lease = Recorder()
    with recorded(lease):
        mapped.does("map", "--restart", "map.dtype=uint8")
    assert lease.unchecked() == []
    item = next(i for i, event in enumerate(lease.events) if event.startswith("remove") and event.endswith("item.json"))
    published = mapped.published()
    loser = Recorder(lease.events[:item].count("check"))
    with recorded(loser):
        mapped.does("map", "--restart", "map.dtype=uint8", status=4)
    assert loser.events[-1] == "check", "neither files nor ledger were changed after the loss"
    assert mapped.published() == published
    assert (mapped.map / "item.json").exists()
