"""The cluster file as it counts: every default shown, every secret hidden. Pure."""

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from cluster.backend_settings import AwsNodeConfig
from cluster.config import ClusterFile

HIDDEN = "(hidden)"

_SECRET_NAME = re.compile(
    r"SECRET|PASSWORD|PASSWD|CREDENTIAL|ACCESS_?KEY|API_?KEY|PRIVATE_?KEY$|TOKEN$", re.IGNORECASE
)
# NAME=value in a command, --option value, and the password of a URL. A value that is a variable
# or a file of the node isn't the secret itself.
_SECRET_TEXTS = (
    re.compile(r"(?i)(\b\w*(?:secret|password|passwd|credential|api_?key|access_?key|token)\w*=)"
               r"(['\"]?)(?![$~/'\"])[^\s'\";]+"),
    re.compile(r"(?i)(--[\w-]*(?:secret|password|token)[\w-]*[ =])(['\"]?)(?![$~/'\"-])[^\s'\";]+"),
    re.compile(r"(\w+://[^\s:/@]+:)()(?!\$)[^\s@/]+(?=@)"),
    re.compile(r"()()\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
)  # fmt: skip


def render_cluster_file(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a valid cluster file with every default, ready for YAML.

    Keys that Ray fills in itself are left to Ray.
    """
    content = ClusterFile.model_validate(dict(raw))
    rendered = content.model_dump(exclude_none=True)
    kinds = {name: site.backend.kind for name, site in content.provider.sites.items()}
    for name, offer in content.provider.node_types.items():
        if kinds[offer.site] == "aws":
            entry = rendered["available_node_types"][name]
            entry["node_config"] = AwsNodeConfig.model_validate(entry["node_config"]).model_dump(
                exclude_none=True
            )
    cleaned: dict[str, Any] = _clean(rendered)
    return cleaned


def hide_secrets(text: str) -> str:
    """Return a text without the secrets that stand in it by mistake."""
    for pattern in _SECRET_TEXTS:
        text = pattern.sub(rf"\g<1>\g<2>{HIDDEN}", text)
    return text


def _clean(value: Any, *, is_secret: bool = False) -> Any:
    if isinstance(value, Mapping):
        return {
            str(key): _clean(part, is_secret=is_secret or bool(_names_secret(key, part)))
            for key, part in value.items()
        }
    if isinstance(value, list | tuple):
        return [_clean(part, is_secret=is_secret) for part in value]
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, str):
        return HIDDEN if is_secret else hide_secrets(value)
    return value


def _names_secret(key: object, value: object) -> bool:
    """Whether a key says that its text is a secret; a path or a variable leads to one only."""
    if not isinstance(value, str) or value.startswith(("~", "/", "$")):
        return False
    return _SECRET_NAME.search(str(key)) is not None
