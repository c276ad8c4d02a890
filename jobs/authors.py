"""authors-to-bundle: a checkpoint of the authors' own code becomes the run's model, in place of training.

The run is then as after `train`, whose manifest says where the model came from: evaluate, map and report go on from it.
"""

from __future__ import annotations

import hashlib
import posixpath
from dataclasses import dataclass

import torch

from jobs.as_run import keep_training
from jobs.config import Config
from jobs.progress import say
from jobs.stages import Manifest, Outcome, begin, run_stage, stale_needs
from jobs.workspace import Workspace
from mibf import __version__
from mibf.authors import PATCH, form, from_bytes
from mibf.bundle import MODEL, Bundle
from mibf.errors import InputError
from mibf.network import MIBFNet
from mibf.scaling import scaling_from_json
from pipeline import storage
from pipeline.lease import Lease
from pipeline.predict import check_sources
from pipeline.store import PatchStore


def authors_to_bundle(config: Config, checkpoint: str) -> Manifest:
    """Read a checkpoint, a path or URL, and write the run's bundle.

    Raises:
        InputError: the checkpoint cannot be read or is not the authors' network, `prepare` is not finished, sources,
            bands or classes are others than the stores', or the run's model was trained. Nothing is written then.
    """
    read = _Checkpoint(checkpoint, _content(checkpoint))
    if "prepare" in stale_needs(config, "train"):
        say("warning: `prepare` is not current with the configuration, inputs or code; `mibf prepare` does it again")
    manifest, _ = run_stage(config, "train", read.to_bundle, keep_current=False, checkpoint=read.sha256)
    return manifest


@dataclass(frozen=True)
class _Checkpoint:
    """A checkpoint file's place, as the person gave it, and content."""

    url: str
    content: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def file_name(self) -> str:
        """The name alone: a URL may carry a signature, which belongs in no file."""
        return posixpath.basename(self.url.partition("?")[0])

    def to_bundle(self, config: Config, workspace: Workspace, fingerprint: str, lease: Lease) -> Outcome:
        """Check the checkpoint against the stores and write the bundle."""
        _check_not_trained(workspace)
        stores = [PatchStore(workspace.store(scene.name)) for scene in config.scenes]
        network = self._network(stores[0], config.model.patch)
        origin = {
            "checkpoint": self.file_name,
            "sha256": self.sha256,
            "form": form(network.spec),
            "trained_on": "unknown",
        }
        bundle = Bundle(
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
            say(f"warning: the paper's patches are of {PATCH} pixels; weights do not tell, {config.model.patch} are taken")
        begin(workspace, "train", lease)
        keep_training(config, workspace)
        workspace.write_bundle(bundle)
        parameters = sum(p.numel() for p in network.parameters())
        lines = [
            f"{parameters:,} parameters of {self.file_name} (SHA-256 {self.sha256}), the bottleneck as {origin['form']}",
            "its training is unknown to mibf; its classes are taken in the order of the configuration: "
            + ", ".join(c.name for c in bundle.classes),
        ]
        return Outcome({"authors": origin, "parameters": parameters}, lines, [workspace.bundle])

    def _network(self, store: PatchStore, patch: int) -> MIBFNet:
        """The checkpoint's network, seen to fit a store's sources and classes."""
        names = [source.name for source in store.sources]
        if len(names) != 2:
            raise InputError(
                f"{self.url}: the authors' network has two sources; the scenes have {len(names)} ({', '.join(names)}). "
                "Leave two in the configuration, in a workspace of their own, and run `mibf prepare`."
            )
        network = from_bytes(self.content, name=self.url, patch=patch, sources=(names[0], names[1]))
        expected = [source.bands for source in network.spec.sources]
        found = [source.bands for source in store.sources]
        if expected != found:
            listed = " and ".join(f"{name} {bands}" for name, bands in zip(names, found, strict=True))
            remedy = (
                "The bands agree in the other order: swap the sources"
                if expected == found[::-1]
                else "Give the sources the bands that it was trained on, in that order,"
            )
            raise InputError(
                f"{self.url}: the network takes {expected[0]} bands of its first source and {expected[1]} of its second; of "
                f"the scenes' sources {listed} are found. {remedy} in the configuration and run `mibf prepare` again."
            )
        if network.spec.classes != len(store.classes):
            raise InputError(
                f"{self.url}: the network tells {network.spec.classes} classes apart; the configuration declares "
                f"{len(store.classes)} ({', '.join(c.name for c in store.classes)}). Declare those that it was trained on, "
                "in its order, and run `mibf prepare` again."
            )
        return network


def _content(url: str) -> bytes:
    try:
        return storage.read_bytes(url)
    except FileNotFoundError as error:
        raise InputError(f"{url}: no such file, or not to be reached; give the path or URL of the checkpoint.") from error
    except InputError:
        raise
    except Exception as error:  # file systems have errors of their own kinds
        raise InputError(f"{url}: cannot be read ({error}); give the path or URL of the checkpoint.") from error


def _check_not_trained(workspace: Workspace) -> None:
    """See that no model gives way that `mibf train` made, or has begun to make; an earlier checkpoint's may."""
    there = storage.exists(storage.join(workspace.bundle, MODEL))
    if storage.exists(workspace.started) or (there and "authors" not in workspace.read_bundle().provenance):
        raise InputError(
            f"{workspace.bundle}: `mibf train` made or began run {workspace.run!r}, and its model is not overwritten. "
            "Give the checkpoint a run of its own: `--set run=authors`, here and for evaluate, map and report."
        )
