"""A mapped scene for tests of `mibf verify`, and ways to damage it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from jobs.cli.common import app
from pipeline.io import checksums
from tests.support.scenes import SmallScene

MAP = "work/maps/small/main"


class Project:
    """A mapped scene and its configuration file, which tests damage."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.map = folder, folder / MAP

    def run(self, command: str, *arguments: str, status: int = 0) -> Result:
        """Run a command, check its exit status and return its result."""
        result = CliRunner().invoke(app, [command, str(self.folder / "small.yaml"), *arguments])
        assert result.exit_code == status, result.output
        return result

    def verify(self, *arguments: str, status: int = 0) -> dict[str, Any]:
        """Return the map's entry in `mibf verify --json`."""
        (found,) = json.loads(self.run("verify", "--json", *arguments, status=status).stdout)["maps"]
        return dict(found)

    def item(self) -> dict[str, Any]:
        return dict(json.loads((self.map / "item.json").read_text()))

    def write_item(self, item: dict[str, Any]) -> None:
        (self.map / "item.json").write_text(json.dumps(item))

    def sign(self, name: str) -> None:
        """Update the size and checksum of a file in the STAC item to its current content."""
        item = self.item()
        size, sha256 = checksums.sha256(str(self.map / name))
        item["assets"][Path(name).stem] |= {"file:size": size, "file:checksum": f"1220{sha256}"}
        self.write_item(item)


def configure(scene: SmallScene, **section: Any) -> None:
    """Write a configuration that maps with an existing model, to avoid training."""
    products = ["class", "confidence", "sources"]
    chosen = {"tile_size": 64, "workers": 0, "attempts": 1, "products": products, "page": False}
    chosen |= {"model": str(scene.folder / "model")}
    scene.write_config(map=chosen | section)


def flip(path: Path, where: int) -> None:
    """Invert all bits of the byte at an offset of a file."""
    content = bytearray(path.read_bytes())
    content[where] ^= 255
    path.write_bytes(content)
