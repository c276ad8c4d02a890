"""No file of infra/ contains a key, a token or a password."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.manifests import INFRA, MANIFESTS, SECRET, mappings


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest_contains_no_secret_values(name: str) -> None:
    manifest = MANIFESTS[name]
    for mapping in mappings(manifest):
        for entry in mapping.get("env") or ():
            assert not SECRET.search(entry["name"]) or set(entry) == {"name", "valueFrom"}, entry["name"]
    if manifest["kind"] == "Secret":
        assert set(manifest["stringData"].values()) == {"REPLACE_ME"}
        assert "data" not in manifest


@pytest.mark.parametrize("path", sorted(p for p in INFRA.rglob("*") if p.is_file()), ids=lambda p: str(p.relative_to(INFRA)))
def test_infra_file_contains_nothing_like_a_key(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b|-----BEGIN|\b[0-9a-f]{32,}\b", text)
    for name, value in re.findall(r"\b(\w*(?:SECRET|TOKEN|PASSWORD|ACCESS_KEY)\w*)=(\S*)", text):
        # A variable, a command substitution, a path, or a placeholder.
        assert name.endswith("_PATH") or re.match(r"""\$|"\$|\.\.\.|$""", value), f"{name}={value}"
