"""Model bundles are found, written and read at paths and URLs."""

from __future__ import annotations

import pytest

from mibf.bundle.bundle import CARD, MODEL, WEIGHTS
from pipeline.io import storage
from pipeline.io.model_bundle import bundle_file, bundle_folder, read_bundle, write_bundle
from tests.support.bundles import PRIORS, make_bundle


@pytest.mark.parametrize(
    ("url", "folder", "weights"),
    [
        ("/a/b", "/a/b", f"/a/b/{WEIGHTS}"),
        ("/a/b/model.json", "/a/b", f"/a/b/{WEIGHTS}"),
        ("/a/b/model.json/", "/a/b", f"/a/b/{WEIGHTS}"),
        ("model.json", ".", f"./{WEIGHTS}"),
        ("", ".", f"./{WEIGHTS}"),
        ("/a/mymodel.json", "/a/mymodel.json", f"/a/mymodel.json/{WEIGHTS}"),
        ("/a?b/c", "/a?b/c", f"/a?b/c/{WEIGHTS}"),
        ("s3://k/a/model.json", "s3://k/a", f"s3://k/a/{WEIGHTS}"),
        ("https://h/a/model.json?sig=x", "https://h/a?sig=x", f"https://h/a/{WEIGHTS}?sig=x"),
    ],
)
def test_bundle_folder_is_derived_from_folder_or_model_json_url(url: str, folder: str, weights: str) -> None:
    assert bundle_folder(url) == folder
    assert bundle_file(folder, WEIGHTS) == weights


def test_bundle_is_written_and_read_at_memory_url() -> None:
    write_bundle("memory://models/run", make_bundle())
    assert read_bundle("memory://models/run/model.json").priors == PRIORS
    assert storage.names("memory://models/run") == sorted([WEIGHTS, CARD, MODEL])
