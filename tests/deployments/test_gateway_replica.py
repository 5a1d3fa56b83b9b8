"""The gateway's deployment class without Ray around it: what it does with the blackboard."""

from pathlib import Path

import pytest

from deployments.app import GatewayArgs
from deployments.auth import create_key
from deployments.gateway import Gateway
from deployments.gateway_replica import GatewayReplica
from deployments.signals import Blackboard, GatewaySignals
from deployments.spec import ModelSpec
from tests.deployments.gateway_fakes import FakePool, make_pool_spec, until


class HiccupingBoard(Blackboard):
    """A board that says once which pools close; every later read fails."""

    def __init__(self) -> None:
        super().__init__(None)
        self.reads = 0

    def list_closing(self, *, now_s: float) -> dict[str, list[str]]:
        self.reads += 1
        if self.reads > 1:
            raise ConnectionError
        return {"m": ["cloud"]}

    def list_signals(self) -> list[GatewaySignals]:
        return []

    def put_signals(self, signals: GatewaySignals) -> None: ...

    def forget_signals(self, gateway: str) -> None: ...


class QuietReplica(GatewayReplica):
    """Serve awaits `__del__`; here the interpreter calls it too, which can't."""

    def __del__(self) -> None: ...  # type: ignore[override]


async def test_a_gateway_keeps_closing_pools_closed_when_the_gcs_fails_to_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_key(tmp_path / "keys.yaml", tenant="lab")
    obeyed: list[dict[str, list[str]]] = []
    monkeypatch.setattr("deployments.gateway_replica._SIGNALS_PERIOD_S", 0.001)
    monkeypatch.setattr(Blackboard, "from_ray", HiccupingBoard)
    monkeypatch.setattr(Gateway, "stop_routing", lambda _self, closing: obeyed.append(closing))
    monkeypatch.setattr("deployments.gateway_replica.ServePool", lambda pool, app: FakePool(pool))
    spec = make_pool_spec(site="onprem", owned=True)
    model = ModelSpec(name="m", context_tokens=2048, pools=(spec,), weights=None)
    replica = QuietReplica(GatewayArgs(models=(model,), keys_file=str(tmp_path / "keys.yaml")))
    await until(lambda: len(obeyed) > 1)
    await GatewayReplica.__del__(replica)
    assert all(closing == {"m": ["cloud"]} for closing in obeyed)
