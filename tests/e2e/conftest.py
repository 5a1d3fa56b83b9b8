"""Clusters the end-to-end tests share: a start takes a minute, so a module has one."""

from collections.abc import Iterator

import pytest

from tests.e2e.served import Served, finish, start_serving


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The embedded cluster with emulated engines, shared by a module's tests."""
    folder = tmp_path_factory.mktemp("emulated")
    served = start_serving(engine="emulated", port_offset=3000, log=folder / "serve.log")
    yield served
    finish(served)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The embedded cluster with a real vLLM engine, one a module: a minute or two."""
    folder = tmp_path_factory.mktemp("vllm")
    served = start_serving(engine="vllm", port_offset=3200, log=folder / "s.log")
    yield served
    finish(served)
