"""GDAL's paths for URLs, and its configuration."""

from __future__ import annotations

import ctypes
import os
import threading
import warnings
from functools import cache
from typing import Literal

from rasterio.errors import NotGeoreferencedWarning

from pipeline.io.storage import encoded, is_local, local_path

#: Prefixes of GDAL's virtual file systems, by URL scheme.
GDAL_SCHEMES = {"s3": "/vsis3/", "gs": "/vsigs/", "gcs": "/vsigs/", "az": "/vsiaz/", "abfs": "/vsiaz/"}

#: The version of each remote file that this process last opened with rasterio, by GDAL path; guarded by the lock.
_last_opened: dict[str, str] = {}
_lock = threading.Lock()

#: The filter of warnings that is set for images without a CRS, which are supported.
_IGNORED = ("ignore", None, NotGeoreferencedWarning, None, 0)


def gdal_path(url: str) -> str:
    """Convert a URL to a GDAL path."""
    if is_local(url):
        return local_path(url)
    scheme, _, rest = url.partition("://")
    if scheme in ("http", "https"):
        return f"/vsicurl/{encoded(url)}"
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
    # Otherwise GDAL waits forever for a server that accepts a connection and sends nothing; below, a byte/s for a minute.
    os.environ.setdefault("GDAL_HTTP_CONNECTTIMEOUT", "10")
    os.environ.setdefault("GDAL_HTTP_LOW_SPEED_TIME", "60")
    os.environ.setdefault("GDAL_HTTP_LOW_SPEED_LIMIT", "1")
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


def forget_other_versions(path: str, version: str | None) -> None:
    """Drop what GDAL has cached of a file if this process last opened another version of it. Local files are not cached.

    GDAL keeps headers and blocks of remote files, and which sidecar files exist, for as long as the process lives. A Dask
    worker or a driver can live longer than the file: without this, it would read the earlier content.

    Args:
        path: the file's GDAL path.
        version: the file's fingerprint; None if unknown, which always drops the cache.
    """
    if not _is_cached(path):
        return
    with _lock:  # other threads wait: none may open the file between the check and the end of the drop
        if version is None or _last_opened.get(path) != version:
            drop_cached(path, "rasterio")
            _last_opened[path] = version or ""


def drop_cached(path: str, package: Literal["rasterio", "pyogrio"]) -> None:
    """Drop what a package's GDAL has cached of a remote file and its sidecar files. Local files are not cached."""
    if not _is_cached(path):
        return
    library = _library(package)
    library.CPLPushErrorHandler(library.CPLQuietErrorHandler)  # missing credentials are reported when the file is opened
    try:
        if path.lower().endswith(".vrt"):
            library.VSICurlClearCache()  # its sources can be anywhere
        else:
            stem, dot, _ = path.partition("?")[0].rpartition(".")
            known = dot and "/" in stem.rpartition("://")[2]
            library.VSICurlPartialClearCache((stem if known else path).encode())
    finally:
        library.CPLPopErrorHandler()


def _is_cached(path: str) -> bool:
    """Whether GDAL caches a file's content: remote files, and virtual rasters, whose sources may be remote."""
    return path.startswith(("/vsi", "http")) or path.lower().endswith(".vrt")


@cache
def _library(package: str) -> ctypes.CDLL:
    """A package's GDAL. The symbols of an extension module include those of the libraries that it is linked to."""
    if package == "rasterio":
        import rasterio._env as extension
    else:
        import pyogrio._io as extension
    library = ctypes.CDLL(str(extension.__file__))
    library.VSICurlPartialClearCache.argtypes = [ctypes.c_char_p]
    library.CPLPushErrorHandler.argtypes = [ctypes.c_void_p]
    for function in (library.VSICurlPartialClearCache, library.VSICurlClearCache, library.CPLPushErrorHandler):
        function.restype = None
    return library
