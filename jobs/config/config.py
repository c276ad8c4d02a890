"""Schema of the configuration file: its keys, defaults and error messages.

Validated by pydantic; an unknown key is refused with the nearest known one as a hint.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from jobs.config.base import Name, Section
from jobs.config.map import MapSection, PredictionSection
from jobs.config.scene import ClassSection, SceneSection
from jobs.config.split import BlocksSection, RandomSplitSection, RasterSplitSection, ScenesSplitSection
from jobs.config.train import ModelSection, SamplingSection, TrainSection
from mibf.redaction import without_queries

#: Values of `prepare.engine` besides addresses of Dask schedulers.
THREADS, RAY = "threads", "ray"


class PrepareSection(Section):
    """How patch stores are written: by what, and the shard side in pixels.

    `engine`: `threads` of this process, `ray` tasks, or the workers of the Dask scheduler at an address; None: `ray` where
    RAY_ADDRESS names a cluster, otherwise `threads`.

    Sources in `histogram_matching` are matched, scene by scene, to the distribution of the training scenes.
    """

    engine: str | None = None
    shard: int | None = None
    histogram_matching: tuple[str, ...] = ()

    @field_validator("engine")
    @classmethod
    def _known_engine(cls, value: str | None) -> str | None:
        if value is not None and value not in (THREADS, RAY) and "://" not in value:
            raise ValueError(f"give `{THREADS}`, `{RAY}`, or the address of a Dask scheduler such as tcp://10.0.0.1:8786")
        return value

    @field_validator("shard")
    @classmethod
    def _whole_chunks(cls, value: int | None) -> int | None:
        if value is not None and not (128 <= value <= 4096 and value % 128 == 0):
            raise ValueError("the shard side must be a multiple of 128 pixels (the chunk side), from 128 to 4096")
        return value


class BaselinesSection(Section):
    """The baselines of `mibf run`. Without `seconds` they take a tenth of the training time, from 10 s to 60 s."""

    enabled: bool = True
    seconds: float | None = Field(default=None, gt=0)
    samples: int = Field(default=20_000, ge=100)


#: Workers that share a GPU, at most.
MOST_PER_GPU = 16


class ResourcesSection(Section):
    """Whether training and mapping compute on GPUs: `auto` uses those that there are, `true` waits for them.

    `gpu_wait_minutes` limits the wait for a cluster's GPUs, such as those of a pool that autoscaling starts from zero.
    `workers_per_gpu` workers share each GPU.
    """

    gpus: bool | Literal["auto"] = "auto"
    gpu_wait_minutes: float = Field(default=30.0, ge=0)
    workers_per_gpu: int = Field(default=1, ge=1, le=MOST_PER_GPU)

    @field_validator("gpus", mode="before")
    @classmethod
    def _is_a_choice(cls, value: Any) -> Any:
        if isinstance(value, bool) or str(value).lower() in ("auto", "true", "false"):
            return value
        raise ValueError(
            f"is {value!r}, but must be true, false or auto; the number of GPUs is that of the workers, one for each, or "
            "one for each `resources.workers_per_gpu` of them"
        )


class Config(Section):
    """The complete configuration file.

    With `stale_on_upgrade`, results are stale once the major or minor version of GDAL, PROJ or torch changes.
    """

    name: Name
    workspace: str = Field(min_length=1)
    run: Name = "main"
    stale_on_upgrade: bool = False
    scenes: tuple[SceneSection, ...] = Field(min_length=1)
    classes: tuple[ClassSection, ...] = Field(min_length=2)
    prepare: PrepareSection = PrepareSection()
    split: Annotated[
        BlocksSection | RasterSplitSection | RandomSplitSection | ScenesSplitSection, Field(discriminator="method")
    ] = BlocksSection()
    sampling: SamplingSection = SamplingSection()
    model: ModelSection = ModelSection()
    train: TrainSection = TrainSection()
    prediction: PredictionSection = PredictionSection()
    baselines: BaselinesSection = BaselinesSection()
    map: MapSection = MapSection()
    resources: ResourcesSection = ResourcesSection()

    @field_validator("workspace")
    @classmethod
    def _lasts(cls, value: str) -> str:
        if value.startswith("memory:"):
            raise ValueError("an in-memory workspace is lost when the process ends; give a folder or an object store URL")
        if without_queries(value) != value:
            raise ValueError(
                "the workspace URL contains credentials, which would appear in logs and metadata; pass them through "
                "environment variables"
            )
        return value

    @field_validator("split", mode="before")
    @classmethod
    def _blocks_by_default(cls, value: Any) -> Any:
        return {"method": "blocks", **value} if isinstance(value, dict) else value

    @property
    def labelled(self) -> bool:
        """Whether any scene has labels."""
        return any(scene.labels is not None for scene in self.scenes)

    @property
    def trainable(self) -> bool:
        """Whether any scene has labels to train on."""
        return bool(self._training_scenes)

    @property
    def _training_scenes(self) -> list[str]:
        held_out = (*self.split.test, *self.split.validation_scenes) if self.split.method == "scenes" else ()
        return [scene.name for scene in self.scenes if scene.labels is not None and scene.name not in held_out]

    @property
    def model_sources(self) -> tuple[str, ...]:
        """Names of the sources that the model uses, unless the recipe `auto` chooses one of them, in the scenes' order."""
        return tuple(name for name in self.scenes[0].sources if self.model.sources is None or name in self.model.sources)

    @property
    def split_block(self) -> int | None:
        """Side in pixels of the blocks that the split assigns to subsets; None if it assigns none."""
        if self.split.method == "blocks" or (self.split.method == "scenes" and not self.split.validation_scenes):
            return self.split.block
        return None

    @property
    def validated(self) -> bool:
        """Whether the split includes validation pixels."""
        return self.split.method != "random" or self.split.validation > 0

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        for what, names in (
            ("scene name", [s.name for s in self.scenes]),
            ("class id", [c.id for c in self.classes]),
            ("class name", [c.name for c in self.classes]),
        ):
            duplicates = [str(name) for name, count in Counter(names).items() if count > 1]
            if duplicates:
                raise ValueError(f"duplicate {what}: {', '.join(duplicates)}")
        if self.train.steps is not None and self.sampling.epoch_fraction < 1:
            raise ValueError(
                f"sampling.epoch_fraction is {self.sampling.epoch_fraction:g}, but with train.steps an epoch has "
                "train.validate_steps steps; remove sampling.epoch_fraction or train.steps"
            )
        self._names_are_distinct()
        first = list(self.scenes[0].sources)
        for scene in self.scenes[1:]:
            if list(scene.sources) != first:
                raise ValueError(
                    f"scene {scene.name!r} has the sources {', '.join(scene.sources)}; scene {self.scenes[0].name!r} has "
                    f"{', '.join(first)}. All scenes of a run must have the same sources in the same order"
                )
        self._model_fits()
        for c in self.classes:
            if any(c.name == str(other.id) and other.id != c.id for other in self.classes):
                raise ValueError(
                    f"the name of class {c.id}, {c.name!r}, is the id of another class, so labels are ambiguous; rename it"
                )
        declared = {c.id for c in self.classes} | {c.name for c in self.classes}
        for scene in self.scenes:
            files = () if scene.labels is None else (scene.labels, *scene.labels.also)
            both = declared.intersection(ignored for file in files for ignored in file.ignore)
            if both:
                listed = ", ".join(map(str, both))
                raise ValueError(f"labels.ignore of scene {scene.name!r} contains declared classes: {listed}")
        if self.split.method == "raster" and len(self.scenes) > 1:
            raise ValueError("a split raster covers one scene only; use `method: blocks` or `scenes` with several scenes")
        self._split_names_scenes()
        if self.train.early_stopping_patience is not None and not self.validated:
            raise ValueError(
                "`train.early_stopping_patience` needs validation pixels, and the split has none; remove "
                "`train.early_stopping_patience`, or set "
                "`split.validation` above 0"
            )
        return self

    def _split_names_scenes(self) -> None:
        """Check that a split by scene names labelled scenes, and leaves one to train on unless a model is given."""
        if self.split.method != "scenes":
            return
        labelled = {scene.name: scene.labels is not None for scene in self.scenes}
        for key, names in (("test", self.split.test), ("validation", self.split.validation_scenes)):
            unknown = [name for name in names if name not in labelled]
            if unknown:
                raise ValueError(f"split.{key} contains {', '.join(unknown)}; the scenes are {', '.join(labelled)}")
            bare = [name for name in names if not labelled[name]]
            if bare:
                raise ValueError(f"split.{key} contains {', '.join(bare)}, which has no `labels`")
        if not self.trainable and self.map.model is None:
            raise ValueError(
                "split.test and split.validation leave no scene with labels to train on; only a configuration that maps "
                "with an existing model (map.model) needs none"
            )

    def _names_are_distinct(self) -> None:
        """Check that no two scenes or sources would share a folder on a case-insensitive file system."""
        for what, names in (("scenes", [s.name for s in self.scenes]), ("sources", list(self.scenes[0].sources))):
            alike = Counter(name.casefold() for name in names)
            same = [name for name in names if alike[name.casefold()] > 1]
            if same:
                raise ValueError(
                    f"{what} {', '.join(same)} differ only in case and collide on some file systems; rename one"
                )

    def _one_source_fits(self) -> None:
        """Check that nothing is requested of a model of one source that only several sources have."""
        if len(self.model_sources) > 1:
            return
        where = "model.sources has" if self.model.sources else "the scenes have"
        if self.train.source_dropout:
            raise ValueError(
                f"train.source_dropout is {self.train.source_dropout:g}, but {where} only one source: a sample "
                "that drops it would have no input; set train.source_dropout to 0, or use two sources"
            )
        if "gate" in self.map.products and self.map.model is None:
            raise ValueError(
                f"map.products contains gate, the weights of the sources against each other, but {where} only one source "
                f"({self.model_sources[0]}); remove gate"
            )

    def _periods_fit(self) -> None:
        """Check that no dropout of periods is requested where no source has some.

        A model of other sources, as in an ablation, may leave it set.
        """
        items = [source.stac for source in self.scenes[0].sources.values() if source.stac is not None]
        if self.train.period_dropout and not any(stac.periods is not None for stac in items):
            raise ValueError(
                f"train.period_dropout is {self.train.period_dropout:g}, but no source has `stac.periods`; remove it"
            )

    def _model_fits(self) -> None:
        """Check that the model's sources and class weights refer to declared names."""
        declared = list(self.scenes[0].sources)
        unknown = [name for name in self.model.sources or () if name not in declared]
        if unknown:
            raise ValueError(f"model.sources contains {', '.join(unknown)}; the sources are {', '.join(declared)}")
        if self.model.sources and len(set(self.model.sources)) < len(self.model.sources):
            raise ValueError("model.sources contains a duplicate")
        matched = self.prepare.histogram_matching
        if unknown := [name for name in matched if name not in declared]:
            raise ValueError(
                f"prepare.histogram_matching contains {', '.join(unknown)}; the sources are {', '.join(declared)}"
            )
        if len(set(matched)) < len(matched):
            raise ValueError("prepare.histogram_matching contains a duplicate")
        self._one_source_fits()
        self._periods_fit()
        weights = self.train.class_weights
        if isinstance(weights, dict):
            names = [c.name for c in self.classes]
            unknown = [name for name in weights if name not in names]
            if unknown:
                raise ValueError(f"train.class_weights contains {', '.join(unknown)}; the classes are {', '.join(names)}")
