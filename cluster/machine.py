"""Which machine this is: the same over restarts, different on every machine."""

from pathlib import Path

# The first is systemd's and D-Bus's standard; the second is where older systems keep it.
_FILES = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))


def read_machine_id(files: tuple[Path, ...] = _FILES) -> str | None:
    """Return this machine's id; None = it has none, as in many containers."""
    for file in files:
        try:
            text = file.read_text(encoding="ascii", errors="replace").strip()
        except OSError:
            continue
        if text and text != "uninitialized":
            return text
    return None
