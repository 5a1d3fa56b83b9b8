"""The kinds of values that settings are made of, and the base of every settings model."""

from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _as_decimal(value: object) -> object:
    """Return YAML's numbers as Decimal, so that money never passes through binary floats."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Decimal(str(value))
    return value


Usd = Annotated[Decimal, BeforeValidator(_as_decimal), Field(ge=0, allow_inf_nan=False)]
UsdPerHour = Usd
Port = Annotated[int, Field(ge=1024, le=65535)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,39}$")]


class Strict(BaseModel):
    """Base of every settings model: a mistyped key must fail, and settings never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
