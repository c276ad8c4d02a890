"""Configuration of scenes: grid, sources, labels, classes and the patch store."""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated, Any, Literal, cast

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    PlainSerializer,
    Tag,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    field_validator,
    model_validator,
)

from jobs.config.base import Name, Section
from jobs.config.stac import IN_BRACES, StacSection, check_mask_rule, kind_of_value
from pipeline.decoding.expression import NAME, ExpressionError, parse, reserved
from pipeline.scenes.acquisition_time import period

Resampling = Literal["nearest", "bilinear", "cubic", "average", "mode", "min", "max", "med", "lanczos"]
#: In place of a CRS: the UTM zone of the scene's area.
AUTO = "auto"
#: Default class colours, distinguishable with most colour vision deficiencies (after Okabe & Ito 2008, extended).
PALETTE = (
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#f0e442", "#56b4e9", "#cc79a7", "#7f7f7f",
    "#8c564b", "#17becf", "#bcbd22", "#1b4f72", "#7d6608", "#145a32", "#641e16", "#4a235a",
)  # fmt: skip  # a list of names: one per line would fill a page

#: Sources of a scene at most: the product `sources` has a bit for each, in an integer of 64 bits at most.
MOST_SOURCES = 64


class GridSection(Section):
    """The reference grid: the grid of a source's first file, or a CRS, resolution and bounds.

    With an area, the bounds are the area's, and the CRS may be `auto`: its UTM zone.
    """

    like: str | None = None
    crs: str | None = None
    resolution: float | None = Field(default=None, gt=0)
    bounds: tuple[float, float, float, float] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> GridSection:
        explicit = [value is not None for value in (self.crs, self.resolution)]
        if (self.like is None) != all(explicit) or (self.like is not None and (any(explicit) or self.bounds)):
            raise ValueError(
                "give either `like` (a source name) or all of `crs`, `resolution` and `bounds` (with `area` or `bbox`, "
                "`bounds` may be left out)"
            )
        if self.crs == AUTO and self.bounds:
            raise ValueError("`crs: auto` takes the bounds of the area; remove `bounds`, or give the CRS that they are in")
        if self.bounds and (self.bounds[0] >= self.bounds[2] or self.bounds[1] >= self.bounds[3]):
            raise ValueError(
                "`bounds` must be [left, bottom, right, top] in the grid's CRS, with left < right and bottom < top"
            )
        return self


def _axes(value: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if value is not None and (len(set(value)) != len(value) or not {"y", "x"} <= {*value}):
        raise ValueError("list each axis once, y and x among them, for example [y, x, band]")
    return value


def _exact(value: Any, as_float: ValidatorFunctionWrapHandler) -> float | None:
    # A number of the file's data type: an integer that a float cannot hold stays an integer.
    number = int(value) if isinstance(value, str) and value.removeprefix("-").isdecimal() else value
    if isinstance(number, int) and 2**53 < abs(number) < 2**64:
        return number
    return cast(float | None, as_float(value))


def _text(value: Any) -> Any:
    return value.isoformat() if isinstance(value, date) else value  # YAML parses times itself


Axes = Annotated[tuple[Annotated[str, Field(pattern=r"^[A-Za-z]\w*$")], ...] | None, AfterValidator(_axes)]
Nodata = Annotated[float | None, WrapValidator(_exact), PlainSerializer(lambda value: value)]
Select = dict[Annotated[str, Field(min_length=1)], Annotated[int | float | str, BeforeValidator(_text)]]


def _encoding(value: Any) -> Any:
    if value == "tessera" or (isinstance(value, dict) and "tessera" not in value):
        value = None if value == "tessera" else ", ".join(map(str, value))
        unknown = "" if value is None else f"`decode` has no {value}; "
        raise ValueError(f"{unknown}`tessera` needs the raster of its scales: `decode: {{tessera: {{scales: URL}}}}`")
    if isinstance(value, dict) or value in ("alphaearth", "db"):
        return value
    raise ValueError("`decode` is `alphaearth`, `db` or `{tessera: {scales: URL}}`")


def _band_name(value: str) -> str:
    if not re.fullmatch(NAME, value) or len(value) > LONGEST_NAME:
        raise ValueError(
            f"a band's name is at most {LONGEST_NAME} letters, digits and `_`, and does not start with a digit, so that an "
            "expression can contain it"
        )
    if reserved(value):
        raise ValueError("has a meaning in expressions, so a band cannot have this name; choose another")
    return value


#: Longest name of a band.
LONGEST_NAME = 100
BandName = Annotated[
    str, AfterValidator(_band_name), WithJsonSchema({"type": "string", "pattern": NAME, "maxLength": LONGEST_NAME})
]


class MaskSection(Section):
    """A validity mask raster: valid or invalid values, or bits that must not be set."""

    url: str
    variable: str | None = None
    axes: Axes = None
    select: Select = Field(default_factory=dict)
    crs: str | None = None
    band: int = Field(default=1, ge=1)
    valid: tuple[int, ...] = ()
    invalid: tuple[int, ...] = ()
    bits: tuple[Annotated[int, Field(ge=0, le=31)], ...] = ()

    @model_validator(mode="after")
    def _says_something(self) -> MaskSection:
        check_mask_rule(self.valid, self.invalid, self.bits)
        return self


class TesseraSection(Section):
    """The scales of TESSERA's embeddings: one raster, or one per file of the source, in the same order.

    Of a source from STAC items it is the asset of each item that holds them.
    """

    scales: str | Annotated[tuple[str, ...], Field(min_length=1)]
    variable: str | None = None
    axes: Axes = None
    select: Select = Field(default_factory=dict)

    @property
    def urls(self) -> tuple[str, ...]:
        """The rasters of scales, in the order of the source's files, or the name of an asset."""
        return (self.scales,) if isinstance(self.scales, str) else self.scales


class DecodeSection(Section):
    """An encoding that needs more than its name."""

    tessera: TesseraSection


Decode = Annotated[
    Annotated[Literal["alphaearth", "db"], Tag("name")] | Annotated[DecodeSection, Tag(IN_BRACES)],
    Discriminator(kind_of_value),
    BeforeValidator(_encoding),
]


class SourceSection(Section):
    """One source: its files and how it is resampled to the reference grid."""

    url: str | None = None
    urls: tuple[str, ...] = ()
    tiles: tuple[str, ...] = ()
    stac: StacSection | None = None
    variable: str | Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    axes: Axes = None
    select: Select = Field(default_factory=dict)
    crs: str | None = None
    bands: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] | None = None
    scale: Literal[1, 2, 4] = 1
    resampling: Resampling | None = None
    gain: float = 1.0
    offset: float = 0.0
    unscale: bool = False
    nodata: Nodata = None
    decode: Decode | None = None
    band_names: tuple[BandName, ...] = ()
    derive: dict[BandName, str] = Field(default_factory=dict)
    keep: tuple[BandName, ...] = ()
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
                "give exactly one of `url` (one file), `urls` (files whose bands are stacked), `tiles` (files mosaicked) "
                "or `stac` (an item or item collection)"
            )
        if self.gain == 0:
            raise ValueError("`gain` is 0, which would set every value to `offset`; give another factor")
        return self

    @model_validator(mode="after")
    def _decoding(self) -> SourceSection:
        if self.unscale and self.decode not in (None, "db"):
            raise ValueError("`decode` of embeddings applies to values as stored; leave out `unscale`")
        if not isinstance(self.decode, DecodeSection):
            return self
        scales = len(self.decode.tessera.urls)
        if self.stac is not None:
            if scales != 1:
                raise ValueError(
                    "`decode.tessera.scales` has several names; with `stac`, give that of one asset of each item"
                )
            return self
        files = len(self.urls or self.tiles or (self.url,))
        if files != scales:
            raise ValueError(f"`decode.tessera.scales` has {scales} for {files} files; give one per file, in the same order")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the bands that are read, as expressions know them; empty if they have none."""
        wanted = self.derive or self.keep or (self.stac is not None and self.stac.periods is not None)
        return self.band_names or (self.stac.assets if self.stac is not None and wanted else ())

    @model_validator(mode="after")
    def _bands_by_name(self) -> SourceSection:
        names = self.names
        if (self.derive or self.keep) and not names:
            raise ValueError("`derive` and `keep` need names: name each band that is read, in order, in `band_names`")
        _refuse_repeated("band_names" if self.band_names else "stac.assets", names)
        for name, text in self.derive.items():
            if name in names:
                raise ValueError(f"`derive.{name}`: a band of the source has this name; choose another")
            try:
                parse(text, names)
            except ExpressionError as error:
                raise ValueError(f"`derive.{name}`: {error}") from error
        _refuse_repeated("keep", self.keep)
        known = (*names, *self.derive)
        for name in self.keep:
            if name not in known:
                raise ValueError(f"`keep` has {name!r}; the bands are {', '.join(known)}")
        return self


def _refuse_repeated(key: str, names: tuple[str, ...]) -> None:
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise ValueError(f"`{key}` has {repeated!r} twice; each name is of one band")


def _numbers(text: str) -> list[int]:
    """Expand a band list such as `1-3, 8` to [1, 2, 3, 8]."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        if not first.isdecimal() or (dash and not last.isdecimal()) or not 0 < int(first) <= int(last or first) < 100_000:
            raise ValueError("`bands` must be band numbers from 1, as a list or as text such as 1-3, 8")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


class LabelFileSection(Section):
    """Labels: a raster of class ids, or a vector file with its class column in `attribute`."""

    url: str
    attribute: str | None = None
    layer: str | None = None
    variable: str | None = None
    axes: Axes = None
    band: Annotated[int, Field(ge=1)] | None = None
    nodata: Nodata = None
    ignore: tuple[int | str, ...] = ()
    all_touched: bool = False
    priority: tuple[int | str, ...] = ()


class LabelsSection(LabelFileSection):
    """The labels of a scene, by which it is split; those in `also` are added to its training ground."""

    also: tuple[LabelFileSection, ...] = ()


class AreaSection(Section):
    """The area of a scene: the polygons of a vector file."""

    url: str
    layer: str | None = None


def check_bbox(value: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """Check a box in degrees, and return it.

    Raises:
        ValueError: it is none.
    """
    west, south, east, north = value
    if not -90 <= south < north <= 90 or west == east or not all(-180 <= x <= 180 for x in (west, east)):
        raise ValueError(
            "`bbox` must be [west, south, east, north] in degrees, with -90 <= south < north <= 90, and west and east "
            "from -180 to 180 (west > east crosses the antimeridian)"
        )
    return value


class SceneSection(Section):
    """One area and its sources. Outside `area` or `bbox` (west, south, east, north in degrees) it has no data."""

    name: Name
    datetime: str | None = None
    area: AreaSection | None = None
    bbox: tuple[float, float, float, float] | None = None
    grid: GridSection
    sources: dict[Name, SourceSection] = Field(min_length=1, max_length=MOST_SOURCES)
    labels: LabelsSection | None = None

    @field_validator("datetime", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return _text(value)

    @field_validator("datetime")
    @classmethod
    def _check_datetime(cls, value: str | None) -> str | None:
        if value is not None:
            period(value)
        return value

    @field_validator("bbox")
    @classmethod
    def _box(cls, value: tuple[float, float, float, float] | None) -> tuple[float, float, float, float] | None:
        return None if value is None else check_bbox(value)

    @model_validator(mode="after")
    def _area_and_grid(self) -> SceneSection:
        if self.area is not None and self.bbox is not None:
            raise ValueError("give either `area` or `bbox`")
        if self.grid.like is None and self.grid.bounds is None and self.area is None and self.bbox is None:
            auto = "`grid.crs: auto` needs an area" if self.grid.crs == AUTO else "`grid.bounds` is missing"
            raise ValueError(
                f"{auto}; give `area: {{url: FILE}}` or `bbox: [west, south, east, north]`, or `grid.bounds` "
                "in the CRS of `grid.crs`"
            )
        return self

    @model_validator(mode="after")
    def _like_is_a_source(self) -> SceneSection:
        if self.grid.like is not None and self.grid.like not in self.sources:
            raise ValueError(f"`grid.like` is {self.grid.like!r}; the sources are {', '.join(self.sources)}")
        like = None if self.grid.like is None else self.sources[self.grid.like].stac
        if like is not None and like.search is not None and self.area is None and self.bbox is None:
            raise ValueError(
                f"`grid.like` is {self.grid.like!r}, which is searched in the scene's area; give `area: {{url: FILE}}` or "
                "`bbox: [west, south, east, north]`"
            )
        return self


class ClassSection(Section):
    """One class: its raster id (0 to 254), name and colour."""

    id: int = Field(ge=0, le=254)
    name: str = Field(min_length=1)
    color: str | None = Field(default=None, pattern="^#[0-9a-fA-F]{6}$")
