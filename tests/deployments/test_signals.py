"""The signals' wire form: what is written is what is read, and nothing else is accepted."""

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.signals import (
    Blackboard,
    ClosingPools,
    GatewaySignals,
    ModelSignal,
    PoolSignal,
    Served,
    Targets,
    decode_signals,
    decode_targets,
    encode_signals,
    encode_targets,
)


class FakeGcs:
    """The four calls of the GCS client that the blackboard makes, over a dict."""

    def __init__(self) -> None:
        self.values: dict[tuple[bytes, bytes], bytes] = {}
        self.is_away = False

    def internal_kv_put(
        self, key: bytes, value: bytes, _overwrite: object, namespace: bytes, timeout_s: float
    ) -> int:
        self.values[namespace, key] = value
        return 1

    def internal_kv_get(self, key: bytes, namespace: bytes, timeout_s: float) -> bytes | None:
        if self.is_away:
            raise ConnectionError
        return self.values.get((namespace, key))

    def internal_kv_keys(self, prefix: bytes, namespace: bytes, timeout_s: float) -> list[bytes]:
        return [k for n, k in self.values if n == namespace and k.startswith(prefix)]

    def internal_kv_del(
        self, key: bytes, _by_prefix: object, namespace: bytes, timeout_s: float
    ) -> int:
        return int(self.values.pop((namespace, key), None) is not None)


@given(st.floats(allow_nan=False, allow_infinity=False), st.none() | st.floats(0, 1), st.text())
def test_signals_survive_encoding_and_decoding(
    published_s: float, kv_use_ratio: float | None, name: str
) -> None:
    pool = PoolSignal(name, "onprem", True, "cpu", "owned", 1, 16, 0, 2, 1, 3, kv_use_ratio)  # noqa: FBT003 - as read
    model = ModelSignal(name, name, 1, 2, 3, 3, published_s, (pool,))
    signals = GatewaySignals(name, published_s, (model,))
    assert decode_signals(encode_signals(signals)) == signals


def test_a_gateway_of_an_older_version_reports_no_cached_tokens_and_no_squares() -> None:
    """While a cluster is updated both speak to one autoscaler; others stay as they are."""
    served = Served(requests=1, prompt_tokens=100, cached_tokens=60, read_tokens_squared=1600)
    pool = PoolSignal("p", "onprem", True, "cpu", "owned", 1, 16, 0, 2, 1, 3, served=served)  # noqa: FBT003 - as read
    signals = GatewaySignals("g", 1.0, (ModelSignal("m", "m", 1, 2, 3, 3, 0.0, (pool,)),))
    older = json.loads(encode_signals(signals))
    for name in ("cached_tokens", "read_tokens_squared", "output_tokens_squared"):
        del older["models"][0]["pools"][0]["served"][name]
    (model,) = decode_signals(json.dumps(older).encode()).models
    assert model.pools[0].served == Served(requests=1, prompt_tokens=100)


def test_targets_survive_encoding_and_decoding() -> None:
    targets = Targets(decided_s=12.5, replicas={"smollm2-135m": {"onprem-cpu-owned": 2}})
    assert decode_targets(encode_targets(targets)) == targets


@pytest.mark.parametrize(
    "change",
    [{"extra": 1}, {"published_s": "1"}, {"published_s": None}, {"models": [{"model": "m"}]}],
    ids=["unknown key", "number as text", "missing number", "incomplete model"],
)
def test_signals_that_are_not_understood_are_refused(change: dict[str, object]) -> None:
    good = {"gateway": "g", "published_s": 1.0, "models": []}
    assert decode_signals(json.dumps(good).encode()) == GatewaySignals("g", 1.0)
    with pytest.raises(ValueError, match="validation error"):
        decode_signals(json.dumps(good | change).encode())


def test_the_board_lists_gateways_in_order_and_forgets_one() -> None:
    board = Blackboard(FakeGcs())
    for gateway in ("b", "a"):
        board.put_signals(GatewaySignals(gateway, 1.0))
    assert _names(board.list_signals()) == ["a", "b"]
    board.forget_signals("a")
    board.forget_signals("never there")
    assert _names(board.list_signals()) == ["b"]


def test_an_empty_board_has_neither_targets_nor_decision() -> None:
    board = Blackboard(FakeGcs())
    assert board.get_targets() is None
    assert board.get_decision() is None
    board.put_targets(Targets(1.0, {"app": {"pool": 1}}))
    board.put_decision({"burst": "open"})
    assert board.get_targets() == Targets(1.0, {"app": {"pool": 1}})
    assert board.get_decision() == {"burst": "open"}


def _names(signals: Sequence[GatewaySignals]) -> list[str]:
    return [signal.gateway for signal in signals]


@pytest.mark.parametrize(
    ("age_s", "expected"), [(1.0, {"m": ["cloud"]}), (11.0, {})], ids=["fresh", "stale"]
)
def test_only_a_fresh_decision_closes_pools(age_s: float, expected: dict[str, list[str]]) -> None:
    """An autoscaler that died 11 s ago must not keep a pool from answering."""
    board = Blackboard(FakeGcs())
    board.put_decision({"decided_s": 100.0, "closing": {"m": ["cloud"]}})
    assert board.list_closing(now_s=100.0 + age_s) == expected


@pytest.mark.parametrize(
    ("age_s", "expected"), [(10.0, {"m": ["cloud"]}), (11.0, {})], ids=["a moment", "too long"]
)
def test_closing_pools_stay_closed_while_the_gcs_is_away_for_a_moment(
    age_s: float, expected: dict[str, list[str]]
) -> None:
    gcs = FakeGcs()
    board = Blackboard(gcs)
    board.put_decision({"decided_s": 100.0, "closing": {"m": ["cloud"]}})
    now_s = 5.0
    closing = ClosingPools(board, clock=lambda: now_s)
    assert closing.list_closing() == {}
    closing.read(now_s=100.0)
    gcs.is_away = True
    now_s += age_s
    with pytest.raises(ConnectionError):
        closing.read(now_s=100.0 + age_s)
    assert closing.list_closing() == expected


def test_pools_open_again_as_soon_as_a_read_says_so() -> None:
    board = Blackboard(FakeGcs())
    closing = ClosingPools(board)
    board.put_decision({"decided_s": 100.0, "closing": {"m": ["cloud"]}})
    closing.read(now_s=100.0)
    board.put_decision({"decided_s": 100.5, "closing": {}})
    closing.read(now_s=100.5)
    assert closing.list_closing() == {}


def test_no_decision_closes_nothing() -> None:
    assert Blackboard(FakeGcs()).list_closing(now_s=0.0) == {}
