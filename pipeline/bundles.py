"""Model bundles where they lie: read from and written to any URL."""

from __future__ import annotations

from mibf.bundle import CARD, MODEL, WEIGHTS, Bundle
from mibf.errors import InputError
from pipeline import storage

#: What is said where there is no bundle.
MISSING = f"no model bundle: it has no {MODEL}; give the folder that `mibf train` wrote, WORKSPACE/models/RUN."


def folder_of(url: str) -> str:
    """The folder of a bundle, of its own URL or that of a file in it."""
    place, query = _parted(url)
    root = "/" if place.startswith("/") else "."
    place = place.rstrip("/")
    for name in (MODEL, WEIGHTS, CARD):
        if f"/{place}".endswith(f"/{name}"):
            place = place.removesuffix(name).rstrip("/")
            break
    return (place or root) + query


def file_of(folder: str, name: str) -> str:
    """The URL of a file of a bundle; what follows a folder's `?`, which may sign it, goes with each."""
    place, query = _parted(folder)
    return storage.join(place, name) + query


def read_files(url: str, *, missing: str = MISSING) -> dict[str, bytes]:
    """What a bundle's reader needs: its weights and model.json, unread.

    Args:
        url: the bundle's folder, or a file in it.
        missing: what is said where there is no bundle.

    Raises:
        InputError: there is none, or it cannot be reached.
    """
    folder = folder_of(url)
    shown = storage.shown(folder)
    found: dict[str, bytes] = {}
    for name in (MODEL, WEIGHTS):
        try:
            found[name] = storage.read_bytes(file_of(folder, name))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise InputError(
                f"{shown}: {missing}"
                if name == MODEL
                else f"{shown}: has {MODEL} and no {name}; copy the bundle again, all files together, or train again."
            ) from error
        except PermissionError as error:
            raise InputError(f"{shown}: access is refused ({error}); check the credentials in the environment.") from error
        except InputError:
            raise
        except Exception as error:  # file systems have errors of their own kinds
            told = storage.without_queries(str(error))
            raise InputError(
                f"{shown}: cannot be reached ({type(error).__name__}: {told}); check the place of the bundle."
            ) from error
    return found


def bundle_of(files: dict[str, bytes], url: str) -> Bundle:
    """The bundle of files that were read from a URL.

    Raises:
        InputError: it is damaged; the URL is named.
    """
    try:
        return Bundle.from_files(files)
    except InputError as error:
        raise InputError(f"{storage.shown(folder_of(url))}: {error}") from error


def read_bundle(url: str, *, missing: str = MISSING) -> Bundle:
    """The bundle at a URL: its folder's, or that of a file in it.

    Raises:
        InputError: there is none, or it is damaged; see `read_files` and `Bundle.from_files`.
    """
    return bundle_of(read_files(url, missing=missing), url)


def write_bundle(folder: str, bundle: Bundle) -> None:
    """Write a bundle, model.json last: it is there only when the weights are."""
    for name, content in bundle.to_files().items():
        storage.write_bytes(file_of(folder, name), content)


def _parted(url: str) -> tuple[str, str]:
    """A URL without its query, and the query with its `?`; a local path has none."""
    if storage.is_local(url):
        return url, ""
    place, mark, query = url.partition("?")
    return place, mark + query
