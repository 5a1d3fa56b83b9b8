"""Reading a file's raw content while nothing in it is certain yet: no value has its type."""

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any


def read_mapping(raw: object, *path: str) -> Mapping[str, Any]:
    """Return the mapping at a path, empty where there is none."""
    here = raw
    for part in path:
        here = here.get(part) if isinstance(here, Mapping) else None
    return here if isinstance(here, Mapping) else {}


def read_whole(value: object, *, default: int = 0) -> int:
    """Return a whole number, or the default for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def read_money(value: object) -> Decimal | None:
    """Return an amount, None for what isn't one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        return None
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        return None
    return amount if amount.is_finite() else None
