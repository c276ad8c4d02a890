"""`mibf import-checkpoint`: import a reference checkpoint (written by the authors' released code) as the run's model.

It takes the place of `train`, and the manifest of `train` records where the model came from: evaluate, map and report use it
like a trained model.
"""

from __future__ import annotations

import hashlib
import posixpath
from dataclasses import dataclass

import torch

from jobs.config.config import Config
from jobs.runtime.progress import info
from jobs.workflow.manifest import Manifest, StageResult
from jobs.workflow.runner import invalidate, run_stage, stale_dependencies
from jobs.workflow.saved_config import save_training_config
from jobs.workflow.stores import open_stores
from jobs.workflow.workspace import Workspace
from mibf import __version__
from mibf.bundle.bundle import MODEL, Bundle
from mibf.bundle.reference_checkpoint import PATCH, form, from_bytes
from mibf.errors import InputError
from mibf.network.mibfnet import MIBFNet
from mibf.normalization import scaling_from_json
from pipeline.io import storage
from pipeline.io.lease import Lease
from pipeline.maps.predictor import check_sources
from pipeline.store.patch_store import PatchStore


def import_checkpoint(config: Config, checkpoint: str) -> Manifest:
    """Read a checkpoint from a path or URL and write the run's bundle.

    Raises:
        InputError: the checkpoint cannot be read or is not of the authors' network, `prepare` is not finished, the
            sources, bands or classes do not match the stores, or the run's model was trained. Nothing is written then.
    """
    read = _Checkpoint(checkpoint, _content(checkpoint))
    if "prepare" in stale_dependencies(config, "train"):
        info(
            "warning: the output of `prepare` is out of date with the configuration, inputs or algorithm version; "
            "run `mibf prepare`"
        )
    manifest, _ = run_stage(config, "train", read.to_bundle, keep_current=False, checkpoint=read.sha256)
    return manifest


@dataclass(frozen=True)
class _Checkpoint:
    """The location of a checkpoint file, as the user gave it, and its content."""

    url: str
    content: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def file_name(self) -> str:
        """The file name alone: a URL may contain a signature, which must not be stored."""
        return posixpath.basename(self.url.partition("?")[0])

    def to_bundle(self, config: Config, workspace: Workspace, fingerprint: str, lease: Lease) -> StageResult:
        """Check the checkpoint against the stores and write the bundle."""
        _check_not_trained(workspace)
        if config.model.centre:
            raise InputError(
                f"{self.url}: model.centre is true, but the authors' network has no centre path; remove model.centre from "
                "the configuration."
            )
        stores = open_stores(workspace, (scene.name for scene in config.scenes))
        network = self._network(stores[0], config.model.patch)
        origin = {
            "checkpoint": self.file_name,
            "sha256": self.sha256,
            "form": form(network.spec),
            "trained_on": "unknown",
        }
        bundle = Bundle.of_network(
            spec=network.spec,
            weights=network.state_dict(),
            scaling=scaling_from_json(storage.read_json(workspace.scaling)),
            classes=stores[0].classes,
            provenance={
                "fingerprint": fingerprint,
                "run": config.run,
                "authors": origin,
                "versions": {"mibf": __version__, "torch": torch.__version__},
            },
        )
        for store in stores:
            check_sources(store, bundle)
        if config.model.patch != PATCH:
            info(
                f"warning: the paper uses patches of {PATCH} pixels; the weights do not record the size, so model.patch "
                f"({config.model.patch}) is used"
            )
        invalidate(workspace, "train", lease)
        lease.check()
        save_training_config(config, workspace)
        workspace.write_bundle(bundle, lease)
        parameters = sum(p.numel() for p in network.parameters())
        lines = [
            f"{parameters:,} parameters from {self.file_name} (SHA-256 {self.sha256}), bottleneck form: {origin['form']}",
            "its training data are unknown; its classes are assumed to be in the order of the configuration: "
            + ", ".join(c.name for c in bundle.classes),
        ]
        return StageResult({"authors": origin, "parameters": parameters}, lines, [workspace.bundle])

    def _network(self, store: PatchStore, patch: int) -> MIBFNet:
        """Read the checkpoint's network and check that it matches a store's sources and classes."""
        names = [source.name for source in store.sources]
        if len(names) != 2:
            raise InputError(
                f"{self.url}: the authors' network has two sources; the scenes have {len(names)} ({', '.join(names)}). "
                "Keep two in the configuration, set a separate workspace, and run `mibf prepare`."
            )
        network = from_bytes(self.content, name=self.url, patch=patch, sources=(names[0], names[1]))
        expected = [source.bands for source in network.spec.sources]
        found = [source.bands for source in store.sources]
        if expected != found:
            listed = " and ".join(f"{name} {bands}" for name, bands in zip(names, found, strict=True))
            remedy = (
                "The bands match in the opposite order: swap the sources"
                if expected == found[::-1]
                else "Give the sources the bands that it was trained on, in that order,"
            )
            raise InputError(
                f"{self.url}: the network takes {expected[0]} bands from its first source and {expected[1]} from its "
                f"second; the scenes' sources have {listed}. {remedy} in the configuration and run `mibf prepare` again."
            )
        if network.spec.classes != len(store.classes):
            raise InputError(
                f"{self.url}: the network has {network.spec.classes} classes; the configuration declares "
                f"{len(store.classes)} ({', '.join(c.name for c in store.classes)}). Declare the classes that it was "
                "trained on, in the same order, and run `mibf prepare` again."
            )
        return network


def _content(url: str) -> bytes:
    try:
        return storage.read_bytes(url)
    except FileNotFoundError as error:
        raise InputError(f"{url}: file not found or unreachable; give the path or URL of the checkpoint.") from error
    except InputError:
        raise
    except Exception as error:  # each file system raises its own errors
        raise InputError(f"{url}: cannot be read ({error}); give the path or URL of the checkpoint.") from error


def _check_not_trained(workspace: Workspace) -> None:
    """Check that no trained or partly trained model is overwritten; an imported model may be."""
    there = storage.exists(storage.join(workspace.bundle, MODEL))
    if storage.exists(workspace.started) or (there and "authors" not in workspace.read_bundle().provenance):
        raise InputError(
            f"{workspace.bundle}: run {workspace.run!r} was trained or started by `mibf train`; its model is not "
            "overwritten. Import the checkpoint into a separate run: `--set run=authors`, here and for evaluate, map and "
            "report."
        )
