"""Clusters the end-to-end tests share: a start takes a minute, so neighbours have one."""

from collections.abc import Generator, Iterator

import pytest

from tests.e2e.served import Served, finish, start_serving

_EMULATED = "emulated"


class SharedCluster:
    """The embedded cluster with emulated engines, while tests that use it follow one another."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory
        self._served: Served | None = None

    def start(self) -> Served:
        """Return it, running."""
        if self._served is None:
            log = self._factory.mktemp("emulated") / "serve.log"
            self._served = start_serving(engine="emulated", port_offset=3000, log=log)
        return self._served

    def stop(self) -> None:
        """Stop it if it runs, and insist that nothing of it is left."""
        served, self._served = self._served, None
        if served is not None:
            finish(served)


_SHARED: pytest.StashKey[SharedCluster] = pytest.StashKey()


@pytest.fixture(scope="module")
def emulated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """The embedded cluster with emulated engines, one for the modules beside each other."""
    shared = request.config.stash.setdefault(_SHARED, SharedCluster(tmp_path_factory))
    return shared.start()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, None, None]:
    """Stop the shared cluster with the last test that uses it: two at once are too much."""
    yield
    shared = item.config.stash.get(_SHARED, None)
    if shared is not None and _EMULATED not in getattr(nextitem, "fixturenames", ()):
        shared.stop()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The embedded cluster with a real vLLM engine, one a module: a minute or two."""
    folder = tmp_path_factory.mktemp("vllm")
    served = start_serving(engine="vllm", port_offset=3200, log=folder / "s.log")
    yield served
    finish(served)
