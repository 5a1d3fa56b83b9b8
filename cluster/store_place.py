"""Where a ledger is: a SQLite file on this machine, or a schema of a PostgreSQL database."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import URL, make_url

from cluster.config import StoreSettings
from cluster.errors import StateError
from cluster.model import ClusterName

_DRIVER = "postgresql+psycopg"
_SCHEMES = frozenset({"postgresql", "postgres", _DRIVER})


@dataclass(frozen=True, slots=True)
class PostgresqlPlace:
    """One cluster's schema in a database. Its text never shows user or password."""

    url: URL = field(repr=False)
    schema: str

    def __str__(self) -> str:
        server = self.url.host or self.url.query.get("host") or "a local socket"
        port = f":{self.url.port}" if self.url.port else ""
        return f"PostgreSQL at {server}{port}, database {self.url.database}, schema {self.schema}"


Place = Path | PostgresqlPlace


def find_place(
    store: StoreSettings, *, state_dir: Path, cluster: ClusterName, environment: Mapping[str, str]
) -> Place:
    """Return where a cluster's ledger is.

    Raises:
        StateError: it is to be in PostgreSQL, and the URL isn't given or can't be read.
    """
    if store.kind == "sqlite":
        return state_dir / cluster / "ledger.db"
    if store.url_env is None:
        raise StateError(
            "provider.store.url_env must name the environment variable that holds the PostgreSQL "
            "URL; it is not given. Write url_env: TIDEGATE_LEDGER_URL, and set that variable."
        )
    text = environment.get(store.url_env, "")
    if not text:
        raise StateError(
            f"${store.url_env} must hold the ledger's PostgreSQL URL; it is not set. "
            f"Set it wherever this cluster's autoscaler and `ray up` run: export {store.url_env}="
            "postgresql://USER:PASSWORD@HOST:5432/DATABASE"
        )
    return PostgresqlPlace(_read_url(text, source=f"${store.url_env}"), name_schema(cluster))


def name_schema(cluster: ClusterName) -> str:
    """Return the schema of a cluster: clusters that share a database share nothing else."""
    return f"tidegate-{cluster}"


def _read_url(text: str, *, source: str) -> URL:
    try:
        url = make_url(text)
    except Exception:  # noqa: BLE001 - whatever it says may quote the password
        url = None
    if url is None or url.drivername not in _SCHEMES or not url.database:
        # Neither the text nor the parser's complaint: either may hold the password.
        raise StateError(
            f"{source} must be a PostgreSQL URL with a database, postgresql://USER:PASSWORD@HOST:"
            "5432/DATABASE; got something else. Write % and / in a password as %25 and %2F."
        ) from None
    return url.set(drivername=_DRIVER)
