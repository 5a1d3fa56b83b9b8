"""What all tests share: the mark of those that start real servers."""

import pytest

# These fixtures start moto or PostgreSQL. Modules that start sshd carry the mark themselves.
_DAEMON_FIXTURES = frozenset({"moto_url", "postgresql_server"})


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by what they ask for, before `-m` chooses: none can forget to say so."""
    for item in items:
        if not _DAEMON_FIXTURES.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker("daemon")
