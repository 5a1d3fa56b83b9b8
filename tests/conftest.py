"""What all tests share: the mark of those that start real servers, and which run beside which."""

import pytest

# These fixtures start moto or PostgreSQL. Modules that start sshd carry the mark themselves.
_DAEMON_FIXTURES = frozenset({"moto_url", "postgresql_server"})


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by what they ask for, before `-m` chooses: none can forget to say so.

    With `--dist loadgroup`, whole embedded clusters run in one line, one after another, and the
    rest in another. They mostly wait, so two lines fit two cores; each has ports of its own.
    """
    for item in items:
        if not _DAEMON_FIXTURES.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker("daemon")
        line = "embedded clusters" if item.path.parent.name == "e2e" else "lab and parts"
        item.add_marker(pytest.mark.xdist_group(line))
