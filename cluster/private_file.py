"""Writes files that only their owner may read: keys, claims, configuration of connections."""

import os
import secrets
from pathlib import Path


def write_private(file: Path, text: str, *, mode: int = 0o600) -> None:
    """Write a file in one step: a kill leaves the old one or the new; a failure leaves no draft.

    Raises:
        OSError: it can't be written; the old one stays.
    """
    draft = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
            opened.write(text)
        draft.replace(file)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
