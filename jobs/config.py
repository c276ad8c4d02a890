"""The one configuration file: what it may say, with its defaults, and how mistakes in it are told.

pydantic checks it; unknown keys are refused and the nearest known one is named.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections import Counter
from collections.abc import Sequence
from datetime import date
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from jobs.texts import odd_texts, with_environment
from jobs.yaml_text import parse, read_text
from mibf.discreet import without_queries
from mibf.errors import InputError
from pipeline.period import period


def _names_a_folder(value: str) -> str:
    """A name that every disk can have a folder of; refused where Windows or a Zarr group means something else by it."""
    reserved = re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?|zarr\.json", value, re.IGNORECASE)
    if reserved or value.endswith("."):
        raise ValueError("is a name that not every disk can have a folder of; choose another")
    return value


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100), AfterValidator(_names_a_folder)]
#: What torch takes for one.
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Resampling = Literal["nearest", "bilinear", "cubic", "average", "mode", "min", "max", "med", "lanczos"]

#: Colours for classes that declare none, told apart by most colour-blind eyes (after Okabe & Ito 2008, then extended).
PALETTE = (
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#f0e442", "#56b4e9", "#cc79a7", "#7f7f7f",
    "#8c564b", "#17becf", "#bcbd22", "#1b4f72", "#7d6608", "#145a32", "#641e16", "#4a235a",
)  # fmt: skip


#: The commonest mistakes of type, in plain words.
PLAIN = {
    "string_pattern_mismatch": "may hold letters, digits, `_`, `-` and `.` only, or as a colour #rrggbb",
    "string_type": "must be text; put it in quotes",
    "int_parsing": "must be a whole number",
    "float_parsing": "must be a number",
    "too_short": "holds too few: a scene takes two sources or more, there are two classes or more, other lists hold one",
    "tuple_type": "must be a list, in brackets, such as [a, b]",
}


#: What to write where a key is missing, as far as it is not plain.
MISSING = {
    "grid": "; say which grid to map on, as {like: SOURCE} or {crs: EPSG:..., resolution: ..., bounds: [...]}",
    "sources": "; name two or more, each with the `url` of its file",
}


class Section(BaseModel):
    """A part of the file: unknown keys are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class GridSection(Section):
    """The reference grid: that of a source's first file, or CRS, resolution and bounds."""

    like: str | None = None
    crs: str | None = None
    resolution: float | None = Field(default=None, gt=0)
    bounds: tuple[float, float, float, float] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> GridSection:
        given = (self.crs, self.resolution, self.bounds)
        if (self.like is None) == all(v is None for v in given) or (self.like is None and None in given):
            raise ValueError("give either `like` (a source's name) or all of `crs`, `resolution` and `bounds`")
        if self.bounds and (self.bounds[0] >= self.bounds[2] or self.bounds[1] >= self.bounds[3]):
            raise ValueError("`bounds` are [left, bottom, right, top] in the grid's CRS, left below right, bottom below top")
        return self


Axes = tuple[Literal["band", "y", "x"], ...]


class StacSection(Section):
    """A STAC item or a collection of items, and the assets that hold the bands, in order."""

    url: str
    assets: tuple[str, ...] = Field(min_length=1)


class MaskSection(Section):
    """A raster that tells where a source may be used: by its values, or by bits that must not be set."""

    url: str
    variable: str | None = None
    axes: Axes | None = None
    band: int = Field(default=1, ge=1)
    valid: tuple[int, ...] = ()
    invalid: tuple[int, ...] = ()
    bits: tuple[Annotated[int, Field(ge=0, le=31)], ...] = ()

    @model_validator(mode="after")
    def _says_something(self) -> MaskSection:
        if not (self.valid or self.invalid or self.bits):
            raise ValueError("give `valid` values, `invalid` values or `bits` that must not be set")
        if self.valid and self.invalid:
            raise ValueError("give either `valid` or `invalid` values")
        return self


class SourceSection(Section):
    """One source: its file or files, and how it comes to the reference grid."""

    url: str | None = None
    urls: tuple[str, ...] = ()
    tiles: tuple[str, ...] = ()
    stac: StacSection | None = None
    variable: str | None = None
    axes: Axes | None = None
    bands: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] | None = None
    scale: Literal[1, 2, 4] = 1
    resampling: Resampling | None = None
    gain: float = 1.0
    offset: float = 0.0
    unscale: bool = False
    nodata: float | None = None
    mask: MaskSection | None = None
    missing: Literal["exclude", "fill"] = "exclude"
    branch: Literal["wide", "narrow"] | None = None

    @field_validator("bands", mode="before")
    @classmethod
    def _ranges(cls, value: Any) -> Any:
        return _numbers(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _files(self) -> SourceSection:
        if sum(bool(given) for given in (self.url, self.urls, self.tiles, self.stac)) != 1:
            raise ValueError(
                "give one of `url` (one file), `urls` (files whose bands follow each other), `tiles` (files side by side) "
                "and `stac` (an item or a collection of items)"
            )
        if self.gain == 0:
            raise ValueError("`gain` is 0, which leaves nothing of the values")
        return self


def _numbers(text: str) -> list[int]:
    """The numbers of `1-3, 8`: 1, 2, 3 and 8."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        if not first.isdecimal() or (dash and not last.isdecimal()) or not 0 < int(first) <= int(last or first) < 100_000:
            raise ValueError("`bands` are numbers from 1, as a list or as text such as 1-3, 8")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


class LabelsSection(Section):
    """Where labels come from: a raster of class ids, or a vector file with `attribute`."""

    url: str
    attribute: str | None = None
    layer: str | None = None
    variable: str | None = None
    axes: Axes | None = None
    nodata: float | None = None
    ignore: tuple[int | str, ...] = ()
    all_touched: bool = False
    priority: tuple[int | str, ...] = ()


class SceneSection(Section):
    """One area and its sources."""

    name: Name
    datetime: str | None = None
    grid: GridSection
    sources: dict[Name, SourceSection] = Field(min_length=2)
    labels: LabelsSection | None = None

    @field_validator("datetime", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return value.isoformat() if isinstance(value, date) else value  # YAML makes times of what looks like one

    @field_validator("datetime")
    @classmethod
    def _of_iso_8601(cls, value: str | None) -> str | None:
        if value is not None:
            period(value)
        return value

    @model_validator(mode="after")
    def _like_is_a_source(self) -> SceneSection:
        if self.grid.like is not None and self.grid.like not in self.sources:
            raise ValueError(f"`grid.like` is {self.grid.like!r}; the sources are {', '.join(self.sources)}")
        return self


class ClassSection(Section):
    """One class: its id in rasters (0 to 254), its name, its colour."""

    id: int = Field(ge=0, le=254)
    name: str = Field(min_length=1)
    color: str | None = Field(default=None, pattern="^#[0-9a-fA-F]{6}$")


class FractionsSection(Section):
    """Shares of the labelled blocks."""

    train: float = Field(default=0.5, gt=0, lt=1)
    validation: float = Field(default=0.2, gt=0, lt=1)
    test: float = Field(default=0.3, gt=0, lt=1)

    @model_validator(mode="after")
    def _whole(self) -> FractionsSection:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the fractions add up to {total:g}, not 1")
        return self


class BlocksSection(Section):
    """A split by spatial blocks with a buffer between subsets."""

    method: Literal["blocks"] = "blocks"
    block: int = Field(default=96, ge=1, le=1_000_000)
    buffer: int | None = Field(default=None, ge=0)
    fractions: FractionsSection = FractionsSection()
    seed: int = Field(default=0, ge=0)


class RasterSplitSection(Section):
    """A split given as a raster: 1 train, 2 validation, 3 test, 0 unused."""

    method: Literal["raster"]
    url: str


class RandomSplitSection(Section):
    """A split of pixels at random: for comparison with papers alone, because training and test patches overlap.

    `train` and `validation` are shares of each class's labelled pixels if below 1, else pixels of each class. Without
    validation pixels, as in many papers, the last epoch is the model.
    """

    method: Literal["random"]
    train: float = Field(default=0.1, gt=0)
    validation: float = Field(default=0.1, ge=0)
    seed: int = Field(default=0, ge=0)

    @field_validator("train", "validation")
    @classmethod
    def _share_or_number(cls, value: float) -> float:
        if value >= 1 and value != int(value):
            raise ValueError("is a share of a class's pixels below 1, or a whole number of them")
        return value


class PrepareSection(Section):
    """How stores are written: by which Dask scheduler (None: threads of this process), in shards of which side."""

    scheduler: str | None = None
    shard: int | None = None

    @field_validator("shard")
    @classmethod
    def _whole_chunks(cls, value: int | None) -> int | None:
        if value is not None and not (128 <= value <= 4096 and value % 128 == 0):
            raise ValueError("a shard's side is a multiple of 128 pixels, the chunk that is read at a time, up to 4096")
        return value


class SamplingSection(Section):
    """How often each class is drawn in training, and how many draws make an epoch: a share of the training pixels."""

    frequencies: Literal["natural", "balanced", "sqrt"] = "natural"
    rate: float = Field(default=1.0, gt=0, le=1)


class ModelSection(Section):
    """The network and its objective."""

    patch: int = 7
    beta: float = Field(default=1e-4, ge=0)
    sources: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    without: tuple[Literal["noise", "relation", "bottleneck"], ...] = ()

    @field_validator("patch")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0 or not 5 <= value <= 15:
            raise ValueError("the patch's side is an odd number of pixels from 5 to 15")
        return value

    @field_validator("without")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"a part is named twice in {', '.join(value)}")
        return value


#: Whole sets of values for `train`, by name: what a recipe does not name has its default, and what is given counts.
RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    # Geng et al. 2023, as released: peak rate 1e-3 * batch / 256, ten warm-up epochs of 300, the last epoch is the model.
    "paper": {
        "optimiser": "adam",
        "epochs": 300,
        "batch": 64,
        "rate": 1e-3 * 64 / 256,
        "weight_decay": 5e-4,
        "warmup": 10 / 300,
        "average": None,
        "augment": False,
        "select": "last",
    },
}
Select = Literal["overall_accuracy", "average_accuracy", "macro_f1", "kappa", "loss", "last"]


class TrainSection(Section):
    """The optimisation. `batch` counts samples over all workers."""

    recipe: Literal["default", "paper"] = "default"
    epochs: int = Field(default=10, ge=1)
    batch: int = Field(default=256, ge=2)
    accumulate: int = Field(default=1, ge=1)
    optimiser: Literal["adamw", "adam"] = "adamw"
    rate: float = Field(default=2e-3, gt=0)
    weight_decay: float = Field(default=5e-4, ge=0)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    clip: float | None = Field(default=None, gt=0)
    average: float | None = Field(default=0.05, gt=0, le=0.5)
    class_weights: Literal["balanced", "sqrt"] | dict[str, Annotated[float, Field(gt=0)]] | None = None
    workers: int = Field(default=1, ge=0)
    max_workers: int | None = Field(default=None, ge=1)
    threads: int | None = Field(default=None, ge=1)
    failures: int = Field(default=3, ge=0)
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    sync_batch_norm: bool = False
    compile: bool = False
    augment: bool = False
    source_dropout: float = Field(default=0.0, ge=0, lt=1)
    select: Select = "overall_accuracy"
    patience: int | None = Field(default=None, ge=1)
    validate_every: int = Field(default=1, ge=1)
    checkpoint_steps: int = Field(default=1000, ge=1)
    log_steps: int = Field(default=100, ge=1)
    mlflow: str | None = None
    seed: Seed = 0
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] | None = None

    @field_validator("class_weights", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if value is not None and value not in ("balanced", "sqrt") and not isinstance(value, dict):
            raise ValueError("is `balanced`, `sqrt` or weights by class, {NAME: WEIGHT}")
        for name, weight in value.items() if isinstance(value, dict) else ():
            if not isinstance(name, str):
                raise ValueError(f"names class {name}; classes go by their names here, not by their ids")
            try:
                positive = float(weight) > 0
            except (TypeError, ValueError):
                positive = False
            if not positive:
                raise ValueError(f"gives class {name!r} the weight {weight!r}; a weight is a number above 0")
        return value

    @model_validator(mode="before")
    @classmethod
    def _by_recipe(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return RECIPES.get(str(values.get("recipe", "default")), {}) | values

    @model_validator(mode="after")
    def _consistent(self) -> TrainSection:
        most = self.most_workers
        if self.max_workers is not None and (self.workers < 1 or self.max_workers < self.workers):
            raise ValueError(
                f"`max_workers` is {self.max_workers} and `workers` {self.workers}: give 1 <= workers <= max_workers"
            )
        if self.batch < 2 * most:
            raise ValueError(f"`batch` {self.batch} is too small for {most} workers: 2 samples or more each")
        if self.batch < 2 * max(1, most) * self.accumulate:
            raise ValueError(
                f"`batch` {self.batch} cannot be computed in {self.accumulate} parts by {max(1, most)} workers: 2 samples "
                "or more in each part"
            )
        if self.seeds is not None and len(set(self.seeds)) < len(self.seeds):
            raise ValueError("`seeds` names one twice")
        if self.patience is not None and self.select == "last":
            raise ValueError("`patience` waits for a better epoch, and `select: last` takes none for better; change one")
        return self

    @property
    def most_workers(self) -> int:
        """Workers at the most; 0 trains in the command's own process."""
        return self.max_workers or self.workers

    @property
    def every_seed(self) -> tuple[int, ...]:
        """The seeds of all trainings."""
        return self.seeds or (self.seed,)


class PredictionSection(Section):
    """For which class frequencies evaluation and map predict: those of training, of the training pixels, or equal ones."""

    priors: Literal["trained", "natural", "uniform"] = "trained"


class MapSection(Section):
    """The map: its tiles and products, how they are stored; draws and seed are those of `information`.

    `model` is the URL of a bundle from elsewhere; the run's own unless given. A tile that fails is tried `attempts` times,
    first `backoff` seconds later, then after twice as long each time. Without `workers` all is done in this process.
    `readers` read tiles for the workers, which otherwise do so themselves.
    A scene whose bands lie farther than `drift_distance` from those of training, in training ranges, is warned of or
    refused (see `pipeline.drift`).
    """

    model: str | None = None
    tile: int = 512
    products: tuple[
        Literal["class", "second", "confidence", "probabilities", "entropy", "information", "rate", "gate", "sources"], ...
    ] = Field(default=("class", "confidence"), min_length=1)
    dtype: Literal["uint16", "uint8", "float32"] = "uint16"
    missing: Literal["declared", "nodata", "map"] = "declared"
    block: int = 32768
    draws: int = Field(default=16, ge=2, le=1000)
    seed: Seed = 0
    workers: int = Field(default=1, ge=0)
    readers: int = Field(default=0, ge=0)
    precision: Literal["float32", "bf16"] = "float32"
    attempts: int = Field(default=3, ge=1)
    backoff: float = Field(default=1.0, ge=0)
    drift: Literal["warn", "refuse", "ignore"] = "warn"
    drift_distance: float = Field(default=0.3, gt=0)

    @field_validator("products")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"a product is named twice in {', '.join(value)}")
        return value

    @model_validator(mode="after")
    def _readers_for_some(self) -> MapSection:
        if self.readers and not self.workers:
            raise ValueError(f"`readers` is {self.readers} and `workers` 0: nobody is there to read for; set `workers`")
        return self

    @field_validator("tile")
    @classmethod
    def _whole_cells(cls, value: int) -> int:
        if value < 64 or value % 64:
            raise ValueError("a tile's side is a multiple of 64 pixels, the cell that is computed at a time")
        return value

    @field_validator("block")
    @classmethod
    def _whole_squares(cls, value: int) -> int:
        if value < 512 or value % 512:
            raise ValueError("a block's side is a multiple of 512 pixels, the squares that files store pixels in")
        return value


class Config(Section):
    """A whole configuration file."""

    name: Name
    workspace: str = Field(min_length=1)
    run: Name = "main"
    scenes: tuple[SceneSection, ...] = Field(min_length=1)
    classes: tuple[ClassSection, ...] = Field(min_length=2)
    prepare: PrepareSection = PrepareSection()
    split: Annotated[BlocksSection | RasterSplitSection | RandomSplitSection, Field(discriminator="method")] = (
        BlocksSection()
    )
    sampling: SamplingSection = SamplingSection()
    model: ModelSection = ModelSection()
    train: TrainSection = TrainSection()
    prediction: PredictionSection = PredictionSection()
    map: MapSection = MapSection()

    @field_validator("workspace")
    @classmethod
    def _lasts(cls, value: str) -> str:
        if value.startswith("memory:"):
            raise ValueError("a workspace in memory would be gone with the process; give a folder or an object store's URL")
        if without_queries(value) != value:
            raise ValueError(
                "a workspace's URL holds a password or a signature, and is told everywhere; the environment has both"
            )
        return value

    @field_validator("split", mode="before")
    @classmethod
    def _blocks_by_default(cls, value: Any) -> Any:
        return {"method": "blocks", **value} if isinstance(value, dict) else value

    @property
    def labelled(self) -> bool:
        """Whether a scene has labels, so that there is something to train on."""
        return any(scene.labels is not None for scene in self.scenes)

    @property
    def validated(self) -> bool:
        """Whether the split is to have validation pixels."""
        return self.split.method != "random" or self.split.validation > 0

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        for what, names in (
            ("scene name", [s.name for s in self.scenes]),
            ("class id", [c.id for c in self.classes]),
            ("class name", [c.name for c in self.classes]),
        ):
            twice = [str(name) for name, count in Counter(names).items() if count > 1]
            if twice:
                raise ValueError(f"{what} given twice: {', '.join(twice)}")
        self._apart_on_every_disk()
        first = list(self.scenes[0].sources)
        for scene in self.scenes[1:]:
            if list(scene.sources) != first:
                raise ValueError(
                    f"scene {scene.name!r} has the sources {', '.join(scene.sources)}; scene {self.scenes[0].name!r} has "
                    f"{', '.join(first)}. All scenes of a run share their sources, in one order"
                )
        self._model_fits()
        for c in self.classes:
            if any(c.name == str(other.id) and other.id != c.id for other in self.classes):
                raise ValueError(f"class {c.id} has the id of another class as its name, {c.name!r}; labels could mean both")
        declared = {c.id for c in self.classes} | {c.name for c in self.classes}
        for scene in self.scenes:
            both = declared & set(scene.labels.ignore if scene.labels else ())
            if both:
                listed = ", ".join(map(str, both))
                raise ValueError(f"labels.ignore of scene {scene.name!r} names declared classes: {listed}")
        if self.split.method == "raster" and len(self.scenes) > 1:
            raise ValueError("a split raster belongs to one scene; use `method: blocks` with several")
        if self.train.patience is not None and not self.validated:
            raise ValueError(
                "`train.patience` waits for a better epoch, and the split has no validation pixels to tell one by; take it "
                "out, or give the split some (`split.validation`)"
            )
        return self

    def _apart_on_every_disk(self) -> None:
        """See that no two scenes or sources would share a folder on a disk that takes `A` and `a` for one name."""
        for what, names in (("scenes", [s.name for s in self.scenes]), ("sources", list(self.scenes[0].sources))):
            alike = Counter(name.casefold() for name in names)
            same = [name for name in names if alike[name.casefold()] > 1]
            if same:
                raise ValueError(
                    f"{what} {', '.join(same)} differ by case alone, which not every disk keeps apart; rename one"
                )

    def _model_fits(self) -> None:
        """See that the model takes sources that there are, enough of them, and weighs classes that there are."""
        declared = list(self.scenes[0].sources)
        unknown = [name for name in self.model.sources or () if name not in declared]
        if unknown:
            raise ValueError(f"model.sources names {', '.join(unknown)}; the sources are {', '.join(declared)}")
        if self.model.sources and len(set(self.model.sources)) < len(self.model.sources):
            raise ValueError("model.sources names a source twice")
        if len(self.model.sources or declared) == 1 and not {"noise", "relation"} <= set(self.model.without):
            raise ValueError("one source alone has none to be related to: add `without: [noise, relation]` to `model`")
        if len(self.model.sources or declared) == 1 and self.train.source_dropout:
            raise ValueError(
                f"train.source_dropout is {self.train.source_dropout:g}, and model.sources names one source: a sample that "
                "loses it would have nothing left; set it to 0, or name two sources"
            )
        weights = self.train.class_weights
        if isinstance(weights, dict):
            names = [c.name for c in self.classes]
            unknown = [name for name in weights if name not in names]
            if unknown:
                raise ValueError(f"train.class_weights names {', '.join(unknown)}; the classes are {', '.join(names)}")


def load(url: str, *, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration file, put environment variables in, apply `key.path=value` overrides, check it.

    Args:
        url: its path or URL.
        overrides: values in place of the file's.

    Raises:
        InputError: the file is missing or not YAML, a `${VARIABLE}` is not set, a key is unknown, a
            value is not allowed. All mistakes of the last two kinds are told at once.
    """
    text = read_text(url)
    try:
        values = parse(text, name=url)
    except yaml.YAMLError as error:
        raise InputError(
            f"{url}: is not valid YAML ({error}). Check the indentation, and put values with # or : in quotes."
        ) from error
    if not isinstance(values, dict):
        raise InputError(f"{url}: holds no configuration; see examples/ for complete ones.")
    for override in overrides:
        _override(values, override)
    values = with_environment(values, url)
    odd = list(odd_texts(values))
    if odd:
        raise InputError(f"{url}:\n" + "\n".join(f"  {line}" for line in odd))
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{url}:\n" + "\n".join(f"  {line}" for line in _explained(error))) from error


def _override(values: dict[str, Any], override: str) -> None:
    path, equals, value = override.partition("=")
    if not equals or not path:
        raise InputError(f"--set {override}: write it as key.path=value, for example train.epochs=5.")
    *parents, last = path.split(".")
    place: Any = values
    for key in parents:
        place = _child(place, key, override)
    try:
        parsed = parse(value, name="--set")
    except yaml.YAMLError as error:
        raise InputError(f"--set {override}: the value is not valid YAML.") from error
    if isinstance(place, list):
        place[_index(place, last, override)] = parsed
    else:
        place[last] = parsed


def _child(place: Any, key: str, override: str) -> Any:
    if isinstance(place, list):
        return place[_index(place, key, override)]
    child = place.setdefault(key, {})
    if child is None:
        child = place[key] = {}
    if not isinstance(child, dict | list):
        raise InputError(f"--set {override}: {key!r} is a single value and has no keys below it.")
    return child


def _index(place: list[Any], key: str, override: str) -> int:
    if not key.isdecimal() or int(key) >= len(place):
        raise InputError(f"--set {override}: {key!r} is not a position in a list of {len(place)}, counted from 0.")
    return int(key)


def _explained(error: ValidationError) -> list[str]:
    """One line a mistake: where it is, what is wrong, and for an unknown key the nearest known one."""
    lines = []
    mistakes = error.errors()
    for mistake in mistakes:
        below = [m for m in mistakes if m["loc"][: len(mistake["loc"])] == mistake["loc"] and m is not mistake]
        if mistake["type"] == "too_short" and below:
            continue  # too few because those there are mistaken
        where = ".".join(str(part) for part in mistake["loc"] if part not in ("blocks", "raster", "random"))
        if mistake["type"] == "extra_forbidden":
            lines.append(_unknown_key(where, mistake["loc"]))
        elif mistake["type"] == "missing":
            hint = MISSING.get(str(mistake["loc"][-1]), "")
            lines.append(f"{where}: is missing{hint}.")
        else:
            message = PLAIN.get(mistake["type"], mistake["msg"].removeprefix("Value error, "))
            value = "" if isinstance(mistake["input"], dict | list) else f" (found {mistake['input']!r})"
            lines.append(f"{where + ': ' if where else ''}{message}{value}.")
    return lines


def _unknown_key(where: str, location: tuple[int | str, ...]) -> str:
    section: Any = Config
    for part in location[:-1]:
        section = _section_below(section, part) or section
    known = list(section.model_fields)
    near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known here are {', '.join(known)}."
    return f"{where}: unknown key; {hint}"


def _section_below(section: type[BaseModel], part: int | str) -> type[BaseModel] | None:
    """The section that a key of a section holds, through lists, mappings and the kinds of split."""
    kinds: dict[int | str, type[BaseModel]] = {
        "blocks": BlocksSection,
        "raster": RasterSplitSection,
        "random": RandomSplitSection,
    }
    if part in kinds:
        return kinds[part]
    found = section.model_fields.get(str(part))
    return None if found is None else _model_in(found.annotation)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        below = _model_in(argument)
        if below is not None:
            return below
    return None
