"""What a node image holds, and the script that puts it there. Pure but for reading the script.

An image's name ends in the digest of everything that decides its content, so the same recipe gives
the same image, and another one a new image.
"""

import hashlib
import json
import re
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.errors import ConfigError

FAILED_MARK = "TIDEGATE-IMAGE-FAILED"

_INSTALL_SCRIPT = Path(__file__).parent / "image" / "install.sh"
_DIGEST_CHARS = 12
# EC2 takes 16 KiB of user data before encoding.
_USER_DATA_BYTES_MAX = 16384
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MODEL = re.compile(r"[\w.-]+/[\w.-]+@[\w.-]+")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9.+-]*")

_USER_DATA = """\
#!/bin/bash
exec > >(tee -a /var/log/tidegate-image.log >/dev/console) 2>&1
cat >/root/install.sh <<'TIDEGATE_END_OF_SCRIPT'
{script}
TIDEGATE_END_OF_SCRIPT
{exports}
if ! bash /root/install.sh; then
    echo "{failed}"
    exit 1
fi
# That it stops is the sign of success: whoever waits needs no way in.
rm -f /root/install.sh
shutdown -h now
"""


@dataclass(frozen=True, slots=True)
class ImageRecipe:
    """What goes into an image.

    `wheel_url` is where the builder finds the wheel; a signed URL will do, its content is what
    counts. `models` are Hugging Face repositories with their revision, "owner/name@revision".
    `driver` is a package of the base image's system, None for a base image that has one.
    """

    base_image: str
    wheel_url: str
    wheel_sha256: str
    models: tuple[str, ...] = ()
    driver: str | None = None
    python: str = "3.11"
    user: str = "ubuntu"

    def __post_init__(self) -> None:
        """Check what would otherwise fail on the builder, an hour later."""
        if not self.wheel_url.startswith("https://"):
            raise ConfigError("wheel_url must begin with https://, so that it can't be exchanged.")
        if not _SHA256.fullmatch(self.wheel_sha256):
            raise ConfigError(
                f"wheel_sha256 must be 64 hexadecimal digits; got {self.wheel_sha256!r}. "
                "Type: sha256sum WHEEL"
            )
        for model in self.models:
            if not _MODEL.fullmatch(model):
                raise ConfigError(
                    f"a model must be owner/name@revision; got {model!r}. Without a revision, two "
                    "images of one recipe could differ."
                )
        if self.driver is not None and not _PACKAGE.fullmatch(self.driver):
            raise ConfigError(f"driver must be the name of a package; got {self.driver!r}.")

    @property
    def digest(self) -> str:
        """Return what tells this content from any other."""
        content = asdict(self)
        # Where the wheel is taken from may change, and may be secret.
        del content["wheel_url"]
        content["script"] = _read_script()
        text = json.dumps(content, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_CHARS]


def render_user_data(recipe: ImageRecipe) -> str:
    """Return the script that a builder runs at its first boot; it stops the machine when done.

    Raises:
        ConfigError: it is longer than EC2 takes.
    """
    values = {
        "TIDEGATE_WHEEL": recipe.wheel_url,
        "TIDEGATE_WHEEL_SHA256": recipe.wheel_sha256,
        "TIDEGATE_MODELS": " ".join(recipe.models),
        "TIDEGATE_DRIVER": recipe.driver or "",
        "TIDEGATE_PYTHON": recipe.python,
        "TIDEGATE_USER": recipe.user,
    }
    text = _USER_DATA.format(
        script=_read_script().rstrip("\n"),
        exports="\n".join(f"export {name}={shlex.quote(value)}" for name, value in values.items()),
        failed=FAILED_MARK,
    )
    size = len(text.encode())
    if size > _USER_DATA_BYTES_MAX:
        raise ConfigError(
            f"the builder's script must have at most {_USER_DATA_BYTES_MAX} bytes; got {size}. "
            "Name fewer models."
        )
    return text


def _read_script() -> str:
    return _INSTALL_SCRIPT.read_text(encoding="utf-8")
