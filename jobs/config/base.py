"""Types that all configuration sections share."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _names_a_folder(value: str) -> str:
    """Accept only names valid as folder names on every file system: none reserved by Windows or by Zarr groups."""
    reserved = re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?|zarr\.json", value, re.IGNORECASE)
    if reserved or value.endswith("."):
        raise ValueError("is not a valid folder name on every file system; choose another")
    return value


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100), AfterValidator(_names_a_folder)]
#: The range of seeds that torch accepts.
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]


class Section(BaseModel):
    """Base class of all sections: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
