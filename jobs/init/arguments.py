"""Parse the arguments of `mibf init`: the files of each source."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from jobs.config.base import Name
from mibf.errors import InputError
from pipeline.io import storage

_NAME = TypeAdapter(Name)
#: `NAME=FILE`. A path or URL that contains `=` has a slash before it, which a name cannot contain.
_PREFIX = re.compile(r"^([A-Za-z0-9_.-]+)=(.+)$", re.DOTALL)


@dataclass(frozen=True)
class FileArgument:
    """A file, and optionally the array or layer to read: `scene.mat#cube`."""

    url: str  #: as given
    part: str | None = None

    def __str__(self) -> str:
        url = storage.redact_url(self.url)
        return url if self.part is None else f"{url}#{self.part}"


@dataclass(frozen=True)
class SourceArgument:
    """The files of one source; their bands are stacked in this order."""

    name: str
    files: tuple[FileArgument, ...]


def parse_sources(arguments: Sequence[str]) -> list[SourceArgument]:
    """Parse `FILE` and `NAME=FILE[,FILE...]` arguments; a source without a name is named after its file.

    Raises:
        InputError: a name is invalid or used twice, or a file is missing.
    """
    named = [_split(argument) for argument in arguments]
    names = [name for name, _ in named if name is not None]
    for chosen in names:
        _check_name(chosen)
        if sum(chosen.casefold() == other.casefold() for other in names) > 1:
            raise InputError(
                f"source {chosen!r} is given twice (upper and lower case count as one); write {chosen}=FILE,FILE for the "
                "files whose bands are stacked, or use other names."
            )
    files = Counter(str(file) for _, group in named for file in group)
    if repeated := [file for file, count in files.items() if count > 1]:
        raise InputError(
            f"{repeated[0]}: is given twice. To use bands of one file as two sources, write the configuration by hand with "
            "`bands` (docs/configuration.md)."
        )
    sources: list[SourceArgument] = []
    for name, group in named:
        taken = names + [source.name for source in sources]
        sources.append(SourceArgument(name or _free_name(suggest_name(group[0]), taken), group))
    return sources


def parse_file(text: str) -> FileArgument:
    """Parse `FILE` or `FILE#ARRAY`.

    Raises:
        InputError: the file does not exist, or its URL contains a query or credentials.
    """
    url, mark, part = text.rpartition("#")
    file = FileArgument(url, part) if mark and url and part and not _is_file(text) else FileArgument(text)
    if not storage.is_local(file.url):
        if storage.without_queries(file.url) != file.url:
            raise InputError(
                f"{file}: the URL has a query or a password, which would be written into the configuration. Pass "
                "credentials through the environment, or download the file."
            )
    elif not _is_file(file.url):
        raise InputError(f"{file}: no such file; check the path.")
    return file


def suggest_name(file: FileArgument) -> str:
    """Return a source name for a file: its stem, with `_` for characters that a name may not contain."""
    base = re.split(r"[/\\]", file.url.rstrip("/"))[-1]
    stem = base.rpartition(".")[0] or base
    return clean_name(stem if file.part is None else file.part)


def clean_name(text: str, *, default: str = "source") -> str:
    """Convert a text to a name that a configuration accepts.

    >>> clean_name("S2 L2A (10 m)"), clean_name("con"), clean_name("äö")
    ('S2_L2A_10_m', 'con_1', 'source')
    """
    cleaned = re.sub(r"[^A-Za-z0-9_.-]+", "_", text).strip("_.-")[:90] or default
    try:
        return str(_NAME.validate_python(cleaned))
    except ValidationError:
        return f"{cleaned}_1"


def _split(argument: str) -> tuple[str | None, tuple[FileArgument, ...]]:
    found = None if _is_file(argument) else _PREFIX.match(argument)
    if found is None:
        return None, (parse_file(argument),)
    rest = found[2]
    texts = [rest] if _is_file(rest) else [part for part in rest.split(",") if part]
    if not texts:
        raise InputError(f"{argument}: names no file; write NAME=FILE or NAME=FILE,FILE.")
    return found[1], tuple(parse_file(text) for text in texts)


def _is_file(text: str) -> bool:
    return storage.is_local(text) and storage.exists(text)


def _check_name(name: str) -> None:
    try:
        _NAME.validate_python(name)
    except ValidationError as error:
        raise InputError(
            f"source name {name!r}: use letters, digits, `_`, `-` and `.`, starting with a letter or digit, 100 characters "
            "at most, and no name that Windows reserves (con, aux, ...)."
        ) from error


def _free_name(name: str, taken: Sequence[str]) -> str:
    used = {other.casefold() for other in taken}
    number, free = 1, name
    while free.casefold() in used:
        number += 1
        free = f"{name}_{number}"
    return free
