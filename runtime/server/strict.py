"""The base of all that a request may hold."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Fields that are not known are errors, and so are numbers that are none."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
