"""Read and write model bundles at any URL."""

from __future__ import annotations

from collections.abc import Callable

from mibf.bundle.bundle import CARD, MODEL, WEIGHTS, Bundle
from mibf.bundle.files import from_files, member_files, to_files
from mibf.errors import InputError
from pipeline.io import storage

#: Message where there is no bundle.
MISSING = f"no model bundle ({MODEL} not found); give the folder that `mibf train` wrote, WORKSPACE/models/RUN."


def bundle_folder(url: str) -> str:
    """The folder of a bundle, from the folder's own URL or that of a file in it."""
    path, query = _parted(url)
    root = "/" if path.startswith("/") else "."
    path = path.rstrip("/")
    for name in (MODEL, WEIGHTS, CARD):
        if f"/{path}".endswith(f"/{name}"):
            path = path.removesuffix(name).rstrip("/")
            break
    return (path or root) + query


def bundle_file(folder: str, name: str) -> str:
    """The URL of a file of a bundle; the folder's query string, which may hold a signature, is kept."""
    path, query = _parted(folder)
    return storage.join(path, name) + query


def read_files(url: str, *, missing: str = MISSING) -> dict[str, bytes]:
    """Read the files that a bundle is loaded from, model.json and its members, without parsing the members.

    Args:
        url: the bundle's folder, or a file in it.
        missing: the message where there is no bundle.

    Raises:
        InputError: there is no bundle, or it cannot be reached.
    """
    folder = bundle_folder(url)
    redacted = storage.redact_url(folder)
    found: dict[str, bytes] = {}
    names = [MODEL]
    for name in names:
        try:
            found[name] = storage.read_bytes(bundle_file(folder, name))
            if name == MODEL:
                names += member_files(found[MODEL])
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise InputError(
                f"{redacted}: {missing}"
                if name == MODEL
                else f"{redacted}: has {MODEL} but no {name}; copy all files of the bundle again, or train again."
            ) from error
        except PermissionError as error:
            raise InputError(f"{redacted}: access denied ({error}); check the credentials in the environment.") from error
        except InputError:
            raise
        except Exception as error:  # each file system raises its own types
            cause = storage.without_queries(str(error))
            raise InputError(
                f"{redacted}: cannot be reached ({type(error).__name__}: {cause}); check the bundle's path or URL."
            ) from error
    return found


def parse_bundle(files: dict[str, bytes], url: str) -> Bundle:
    """Parse a bundle from the files read from a URL.

    Raises:
        InputError: it is damaged; the message names the URL.
    """
    try:
        return from_files(files)
    except InputError as error:
        raise InputError(f"{storage.redact_url(bundle_folder(url))}: {error}") from error


def read_bundle(url: str, *, missing: str = MISSING) -> Bundle:
    """Read the bundle at a URL, that of its folder or of a file in it.

    Raises:
        InputError: there is no bundle, or it is damaged; see `read_files` and `mibf.bundle.files.from_files`.
    """
    return parse_bundle(read_files(url, missing=missing), url)


def write_bundle(folder: str, bundle: Bundle, *, before_each: Callable[[], object] = lambda: None) -> None:
    """Write a bundle, model.json last: it exists only once the weights do. `before_each` is called before each file."""
    for name, content in to_files(bundle).items():
        before_each()
        storage.write_bytes(bundle_file(folder, name), content)


def _parted(url: str) -> tuple[str, str]:
    """Split a URL into the part before its query, and the query with its `?`; a local path has no query."""
    if storage.is_local(url):
        return url, ""
    path, mark, query = url.partition("?")
    return path, mark + query
