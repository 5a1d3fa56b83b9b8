"""What all tests share: the mark of those that start real servers, and which stay together."""

from pathlib import PurePosixPath

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# These fixtures start moto or PostgreSQL. Modules that start sshd carry the mark themselves.
_DAEMON_FIXTURES = frozenset({"moto_url", "postgresql_server"})
# Two real engines at once would fight over the cores, and some of these modules share one.
_REAL_ENGINE = frozenset({"test_engine_contract", "test_real_engine", "test_replica_lifecycle"})


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by what they ask for, before `-m` chooses: none can forget to say so."""
    for item in items:
        if not _DAEMON_FIXTURES.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker("daemon")


class SharedScheduling(LoadScopeScheduling):
    """Gives tests that share something costly to one process, one after another.

    Each cluster has ports of its own, so what shares nothing may run beside it.
    """

    def _split_scope(self, nodeid: str) -> str:
        module = PurePosixPath(nodeid.partition("::")[0])
        if module.parent.name == "lab":
            return "lab"
        if module.stem in _REAL_ENGINE:
            return "real engine"
        return "embedded" if module.stem.startswith("test_embedded_") else module.stem


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> SharedScheduling | None:
    """Return our scheduler for `--dist loadscope`."""
    return SharedScheduling(config, log) if config.getvalue("dist") == "loadscope" else None
