"""GDAL's paths for URLs, and its configuration."""

from __future__ import annotations

import os
import warnings

from rasterio.errors import NotGeoreferencedWarning

from pipeline.io.storage import is_local, local_path

#: Prefixes of GDAL's virtual file systems, by URL scheme.
GDAL_SCHEMES = {"s3": "/vsis3/", "gs": "/vsigs/", "gcs": "/vsigs/", "az": "/vsiaz/", "abfs": "/vsiaz/"}

#: The filter of warnings that is set for images without a CRS, which are supported.
_IGNORED = ("ignore", None, NotGeoreferencedWarning, None, 0)


def gdal_path(url: str) -> str:
    """Convert a URL to a GDAL path."""
    if is_local(url):
        return local_path(url)
    scheme, _, rest = url.partition("://")
    if scheme in ("http", "https"):
        return f"/vsicurl/{url}"
    return GDAL_SCHEMES[scheme] + rest if scheme in GDAL_SCHEMES else url


def configure_gdal() -> None:
    """Configure how GDAL reads, and from which S3 server: the one that AWS_ENDPOINT_URL names, as for fsspec.

    GDAL takes these settings from the environment, in every thread. rasterio's warning about images without a CRS is
    suppressed.
    """
    if _IGNORED not in warnings.filters:  # setting a filter again would repeat warnings that are shown once
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
    os.environ.setdefault("GDAL_CACHEMAX", "128")  # the default, 5 % of memory, would cache blocks that are read once
    os.environ.setdefault("GDAL_HTTP_MAX_RETRY", "4")
    os.environ.setdefault("GDAL_HTTP_RETRY_DELAY", "1")
    os.environ.setdefault("GDAL_DISABLE_READDIR_ON_OPEN", "TRUE")  # otherwise GDAL lists the folder of each file it opens
    os.environ.setdefault("RAW_CHECK_FILE_SIZE", "YES")  # otherwise the missing part of a truncated file reads as zeros
    os.environ["GDAL_VRT_ENABLE_PYTHON"] = "NO"  # whatever was set before: Python code in a virtual raster would run as ours
    os.environ["GML_DOWNLOAD_SCHEMA"] = "NO"  # a label file must not cause network requests
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint and "AWS_S3_ENDPOINT" not in os.environ:
        scheme, _, host = endpoint.rpartition("://")
        os.environ["AWS_HTTPS"] = "NO" if scheme == "http" else "YES"
        os.environ["AWS_VIRTUAL_HOSTING"] = "FALSE"
        os.environ["AWS_S3_ENDPOINT"] = host.rstrip("/")
