"""Where everything of a configuration lies, below its workspace's URL."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from jobs.config import Config
from mibf.bundle import Bundle
from pipeline import bundles, storage


@dataclass(frozen=True)
class Workspace:
    """The places of one configuration's run."""

    url: str
    run: str

    @classmethod
    def of(cls, config: Config) -> Workspace:
        """The workspace that a configuration names; a local one by its absolute path."""
        url = storage.local_path(config.workspace) if storage.is_local(config.workspace) else config.workspace
        return cls(url, config.run)

    @property
    def stores(self) -> str:
        """The folder of all patch stores."""
        return storage.join(self.url, "stores")

    def store(self, scene: str) -> str:
        """A scene's patch store."""
        return storage.join(self.stores, f"{scene}.zarr")

    def records(self, scene: str) -> str:
        """What was written of a scene's patch store, with checksums."""
        return storage.join(self.stores, f"{scene}.shards.json")

    @property
    def scaling(self) -> str:
        """The limits fitted on training pixels."""
        return storage.join(self.url, "scaling.json")

    @property
    def split(self) -> str:
        """Counts per class and subset, and the overlap figure."""
        return storage.join(self.url, "split.json")

    @property
    def run_folder(self) -> str:
        """The run's checkpoints, metrics, configuration and environment."""
        return storage.join(self.url, "runs", self.run)

    @property
    def configuration(self) -> str:
        """The configuration that the run's training was begun with."""
        return storage.join(self.run_folder, "config.yaml")

    @property
    def map_configuration(self) -> str:
        """The configuration that the run's map was begun with last: what reruns go by."""
        return storage.join(self.run_folder, "map.yaml")

    @property
    def started(self) -> str:
        """What says that `mibf train` began the run, and for which fingerprint."""
        return storage.join(self.run_folder, "started.json")

    @property
    def metrics(self) -> str:
        """One JSON line an epoch."""
        return storage.join(self.run_folder, "metrics.jsonl")

    @property
    def step_metrics(self) -> str:
        """One JSON line every `train.log_steps` steps."""
        return storage.join(self.run_folder, "steps.jsonl")

    @property
    def all_checkpoints(self) -> str:
        """The checkpoints of all seeds."""
        return storage.join(self.run_folder, "checkpoints")

    def checkpoints(self, seed: int) -> str:
        """The checkpoints of one seed's training."""
        return storage.join(self.all_checkpoints, f"seed-{seed}")

    def result(self, seed: int) -> str:
        """What one seed's training came to; where it is, that training is done."""
        return storage.join(self.checkpoints(seed), "result.json")

    def seed_bundle(self, seed: int) -> str:
        """The model of one seed, where several were trained; the chosen one's is `bundle` too."""
        return storage.join(self.bundle, f"seed-{seed}")

    @property
    def environment(self) -> str:
        """What the run was made with: packages, commit, data, hardware."""
        return storage.join(self.run_folder, "environment.json")

    @property
    def evaluation(self) -> str:
        """The figures on the test subset."""
        return storage.join(self.run_folder, "evaluation.json")

    @property
    def ablation(self) -> str:
        """What each part of the method is worth."""
        return storage.join(self.run_folder, "ablation.json")

    @property
    def bundle(self) -> str:
        """The trained model's folder."""
        return storage.join(self.url, "models", self.run)

    def map_folder(self, scene: str) -> str:
        """A scene's products."""
        return storage.join(self.url, "maps", scene, self.run)

    @property
    def report(self) -> str:
        """The report's page."""
        return storage.join(self.url, "report", "index.html")

    def manifest(self, stage: str) -> str:
        """What says that a stage is done; the stores and the page are shared by all runs."""
        folder = self.url if stage in ("prepare", "report") else self.run_folder
        return storage.join(folder, "manifests", f"{stage}.json")

    def read_bundle(self, seed: int | None = None) -> Bundle:
        """The trained model, or that of one seed.

        Raises:
            InputError: there is none, or it is damaged.
        """
        folder = self.bundle if seed is None else self.seed_bundle(seed)
        return bundles.read_bundle(folder, missing="no trained model; run `mibf train` first.")

    def write_bundle(self, bundle: Bundle, *, seed: int | None = None) -> None:
        """Write the trained model, or that of one seed."""
        bundles.write_bundle(self.bundle if seed is None else self.seed_bundle(seed), bundle)

    def keep_seed_bundles(self, seeds: Iterable[int]) -> None:
        """Remove the models of other seeds than these: they are of an earlier training."""
        kept = {self.seed_bundle(seed) for seed in seeds}
        for name in storage.names(self.bundle):
            if name.startswith("seed-") and (url := storage.join(self.bundle, name)) not in kept:
                storage.remove(url)
