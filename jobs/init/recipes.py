"""Recipes of `mibf init`: the sources of common sensors in two STAC APIs, as their catalogues describe them.

Earth Search v1: https://github.com/Element84/earth-search. Planetary Computer:
https://planetarycomputer.microsoft.com/catalog. AlphaEarth: https://source.coop/tge-labs/aef.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Api = Literal["earth-search", "planetary-computer"]

EARTH_SEARCH = "https://earth-search.aws.element84.com/v1"
PLANETARY_COMPUTER = "https://planetarycomputer.microsoft.com/api/stac/v1"
#: The URL and the name of each API.
APIS: dict[Api, tuple[str, str]] = {
    "earth-search": (EARTH_SEARCH, "Earth Search"),
    "planetary-computer": (PLANETARY_COMPUTER, "the Planetary Computer"),
}
SIGNED = "Files are signed when they are opened; install the library for that: pip install mibf[planetary-computer]"


@dataclass(frozen=True)
class RecipeSource:
    """A source that is searched: collection, assets and how their values are read."""

    name: str
    comment: str  #: the name of its period replaces `{period}`
    collections: tuple[str, ...]
    assets: tuple[str, ...]
    band_names: tuple[str, ...] = ()
    stac: Mapping[str, Any] = field(default_factory=dict)  #: further keys of `stac`
    keys: Mapping[str, Any] = field(default_factory=dict)  #: further keys of the source
    mask: str = ""  #: what the mask takes for clear, as a comment
    cloudy: bool = False  #: whether its items state a share of clouds
    dates: str | None = None  #: if they are not those that are asked for

    @property
    def has_periods(self) -> bool:
        """Whether each month or season becomes bands of its own."""
        return "composite" in self.stac


@dataclass(frozen=True)
class Recipe:
    """Sources of an API and the pixel size of their map."""

    url: str
    resolution: int  #: of the grid, in meters
    sources: tuple[RecipeSource, ...]
    notes: tuple[str, ...] = ()  #: for the user
    yearly: bool = False  #: whether there is one item for a place and a year


#: Classes of Sentinel-2's scene classification.
CLEAR = [4, 5, 6, 7, 11]
#: Percent of clouds from which on an item is left out: it costs as much to read as others, and what its mask lets pass is
#: little and often haze. CQL2 as JSON, which both APIs take; Earth Search takes no text.
MOST_CLOUDS = 80
CLOUDS = {"op": "<", "args": [{"property": "eo:cloud_cover"}, MOST_CLOUDS]}
#: Pixels by which clouds are extended.
DILATE = 3
MEDIANS: Mapping[str, Any] = {"composite": "median"}
S2_BANDS = ("blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", "nir08", "swir16", "swir22")
SIX_BANDS = ("blue", "green", "red", "nir08", "swir16", "swir22")


def _s2(collection: str, assets: tuple[str, ...], scl: str) -> RecipeSource:
    return RecipeSource(
        "s2",
        "Sentinel-2 L2A: reflectance, median of the clear dates of each {period}.",
        (collection,),
        assets,
        () if assets == S2_BANDS else S2_BANDS,
        {"mask": {"asset": scl, "valid": CLEAR, "dilate": DILATE}, **MEDIANS},
        # Bands of 20 m are interpolated; those of 10 m stay as they are, and so do the classes of the mask.
        {"unscale": True, "resampling": "bilinear"},
        f"Clear: vegetation, bare soil, water, unclassified, snow. What is not is extended by {DILATE} pixels.",
        cloudy=True,
    )


#: It has one date, whatever is searched for.
DEM = RecipeSource(
    "dem",
    "Copernicus DEM GLO-30: height in meters, and its slope in degrees.",
    ("cop-dem-glo-30",),
    ("data",),
    ("height",),
    keys={"resampling": "bilinear", "derive": {"slope": "slope(height)"}},
    dates="2000-01-01/2049-12-31",
)
S1 = RecipeSource(
    "s1",
    "Sentinel-1 RTC: gamma nought in decibels, median of all dates and orbits of each {period}.",
    ("sentinel-1-rtc",),
    ("vv", "vh"),
    stac=MEDIANS,
    keys={"decode": "db"},
)


def _hls(name: str, of: str, collection: str, assets: tuple[str, ...]) -> RecipeSource:
    return RecipeSource(
        name,
        f"HLS of {of}: reflectance, median of the clear dates of each {{period}}.",
        (collection,),
        assets,
        SIX_BANDS,
        # User guide of HLS v2.0, table 9.
        {"mask": {"asset": "Fmask", "bits": [1, 2, 3]}, **MEDIANS},
        # By hand, for some files lack their scale.
        {"gain": 0.0001, "nodata": -9999},
        "Not clear: cloud, adjacent to cloud or shadow, cloud shadow.",
        cloudy=True,
    )


def _landsat(**stac: Any) -> RecipeSource:
    return RecipeSource(
        "landsat",
        "Landsat Collection 2 Level 2: reflectance, median of the clear dates of each {period}.",
        ("landsat-c2-l2",),
        SIX_BANDS,
        stac={**stac, "mask": {"asset": "qa_pixel", "bits": [0, 1, 2, 3, 4]}, **MEDIANS},
        keys={"unscale": True},
        mask="Not clear: fill, dilated cloud, cirrus, cloud, cloud shadow.",
        cloudy=True,
    )


ALPHAEARTH = RecipeSource(
    "alphaearth",
    "AlphaEarth: 64 embeddings a year, by Google and Google DeepMind (CC-BY 4.0).",
    (),
    ("data",),
    tuple(f"A{number:02d}" for number in range(64)),
    keys={"decode": "alphaearth"},
)

#: The recipes by name and API; the first API of each is its default. AlphaEarth has an index of its own.
RECIPES: dict[str, dict[Api | None, Recipe]] = {
    "s2-s1-dem": {
        "planetary-computer": Recipe(
            PLANETARY_COMPUTER,
            10,
            (
                _s2("sentinel-2-l2a", ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"), "SCL"),
                S1,
                DEM,
            ),
            (SIGNED,),
        ),
        "earth-search": Recipe(
            EARTH_SEARCH,
            10,
            (_s2("sentinel-2-c1-l2a", S2_BANDS, "scl"), DEM),
            (
                "Earth Search has no Sentinel-1 that is corrected for terrain (sentinel-1-grd is not), so the configuration "
                "has none; --api planetary-computer has it",
            ),
        ),
    },
    "hls": {
        "planetary-computer": Recipe(
            PLANETARY_COMPUTER,
            30,
            (
                _hls("hls_s30", "Sentinel-2", "hls2-s30", ("B02", "B03", "B04", "B8A", "B11", "B12")),
                _hls("hls_l30", "Landsat 8 and 9", "hls2-l30", ("B02", "B03", "B04", "B05", "B06", "B07")),
            ),
            (SIGNED,),
        )
    },
    "landsat": {
        "planetary-computer": Recipe(PLANETARY_COMPUTER, 30, (_landsat(),), (SIGNED,)),
        "earth-search": Recipe(
            EARTH_SEARCH,
            30,
            (_landsat(alternate="s3"),),
            ("the files are in a bucket whose requester pays: set AWS_REQUEST_PAYER=requester and credentials of AWS",),
        ),
    },
    "alphaearth": {
        None: Recipe(
            "https://data.source.coop/tge-labs/aef/v1/annual/aef_index_stac_geoparquet.parquet",
            10,
            (ALPHAEARTH,),
            ("the files are in a public bucket: set AWS_NO_SIGN_REQUEST=YES, AWS_REGION=us-west-2 and FSSPEC_S3_ANON=true",),
            yearly=True,
        )
    },
}
#: What there is no search for, and what to do instead.
NOT_SEARCHED = {
    "tessera": "its embeddings are in no STAC catalogue. Export those of the area as GeoTIFFs with geotessera, and list "
    "them as `tiles` of a source; quantized values need `decode: {tessera: {scales: [...]}}` (docs/configuration.md)"
}
