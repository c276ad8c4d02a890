"""URLs of all files of a configuration below its workspace."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from jobs.config.config import Config
from mibf.bundle.bundle import Bundle
from pipeline.io import model_bundle, storage
from pipeline.io.lease import Lease


@dataclass(frozen=True)
class Workspace:
    """URLs of one configuration's run."""

    url: str
    run: str

    @classmethod
    def of(cls, config: Config) -> Workspace:
        """Create from a configuration; a local workspace is made an absolute path."""
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
        """The shards written to a scene's patch store, with checksums."""
        return storage.join(self.stores, f"{scene}.shards.json")

    def found_items(self, scene: str, source: str) -> str:
        """The items that were found for a searched source of a scene."""
        return storage.join(self.stores, f"{scene}.items", f"{source}.parquet")

    @property
    def scaling(self) -> str:
        """The per-band normalization limits fitted on training pixels."""
        return storage.join(self.url, "scaling.json")

    @property
    def split(self) -> str:
        """Sample counts per class and subset, and the overlap of test and training patches."""
        return storage.join(self.url, "split.json")

    @property
    def catalog(self) -> str:
        """The metadata of all stores and their windows with samples, in one file."""
        return storage.join(self.url, "catalog.parquet")

    @property
    def run_folder(self) -> str:
        """The run's checkpoints, metrics, configuration and environment."""
        return storage.join(self.url, "runs", self.run)

    @property
    def configuration(self) -> str:
        """The configuration with which the run's training was started."""
        return storage.join(self.run_folder, "config.yaml")

    @property
    def map_configuration(self) -> str:
        """The configuration with which the run's map was last started; used by reruns."""
        return storage.join(self.run_folder, "map.yaml")

    @property
    def started(self) -> str:
        """Marker that `mibf train` started the run, with the fingerprint."""
        return storage.join(self.run_folder, "started.json")

    @property
    def metrics(self) -> str:
        """One JSON line per epoch."""
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
        """The result of one seed's training; exists only once that training is finished."""
        return storage.join(self.checkpoints(seed), "result.json")

    def seed_bundle(self, seed: int) -> str:
        """The model of one seed if several were trained; the selected one is also written to `bundle`."""
        return storage.join(self.bundle, f"seed-{seed}")

    @property
    def trials(self) -> str:
        """What the recipe `auto` tried and chose."""
        return storage.join(self.run_folder, "trials.json")

    @property
    def environment(self) -> str:
        """Provenance of the run: packages, commit, data, hardware."""
        return storage.join(self.run_folder, "environment.json")

    @property
    def evaluation(self) -> str:
        """The metrics on the test subset."""
        return storage.join(self.run_folder, "evaluation.json")

    def scene_evaluation(self, scene: str) -> str:
        """The metrics on one scene that were requested separately."""
        return storage.join(self.run_folder, f"evaluation-{scene}.json")

    @property
    def ablation(self) -> str:
        """The results of the ablation."""
        return storage.join(self.run_folder, "ablation.json")

    @property
    def baseline(self) -> str:
        """The results of the baselines, of `mibf run` or `mibf baseline`, whichever came last."""
        return storage.join(self.run_folder, "baseline.json")

    @property
    def samples(self) -> str:
        """The samples of the run's map that were drawn to assess it."""
        return storage.join(self.run_folder, "samples")

    def sample(self, name: str) -> str:
        """The folder of one of them."""
        return storage.join(self.samples, name)

    @property
    def estimates(self) -> str:
        """Accuracy and areas of the run's map, estimated from a sample."""
        return storage.join(self.run_folder, "estimates.json")

    @property
    def bundle(self) -> str:
        """The trained model's folder."""
        return storage.join(self.url, "models", self.run)

    def map_folder(self, scene: str) -> str:
        """The folder of a scene's map products."""
        return storage.join(self.url, "maps", scene, self.run)

    @property
    def report(self) -> str:
        """The HTML report."""
        return storage.join(self.url, "report", "index.html")

    def manifest(self, stage: str) -> str:
        """The manifest that marks a stage as finished; all runs share those of prepare and report."""
        folder = self.url if stage in ("prepare", "report") else self.run_folder
        return storage.join(folder, "manifests", f"{stage}.json")

    def read_bundle(self, seed: int | None = None) -> Bundle:
        """Read the trained model, or the model of one seed.

        Raises:
            InputError: the model is missing or damaged.
        """
        folder = self.bundle if seed is None else self.seed_bundle(seed)
        return model_bundle.read_bundle(folder, missing="no trained model; run `mibf train` first.")

    def write_bundle(self, bundle: Bundle, lease: Lease, *, seed: int | None = None) -> None:
        """Write the trained model, or the model of one seed.

        Raises:
            LeaseLostError: the workspace lease was lost.
        """
        model_bundle.write_bundle(self.bundle if seed is None else self.seed_bundle(seed), bundle, before_each=lease.check)

    def keep_seed_bundles(self, seeds: Iterable[int], lease: Lease) -> None:
        """Remove the models of all other seeds, left by an earlier training.

        Raises:
            LeaseLostError: the workspace lease was lost.
        """
        kept = {self.seed_bundle(seed) for seed in seeds}
        for name in storage.names(self.bundle):
            if name.startswith("seed-") and (url := storage.join(self.bundle, name)) not in kept:
                lease.check()
                storage.remove(url)
