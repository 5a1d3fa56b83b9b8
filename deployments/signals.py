"""What gateways tell the autoscaler, what it answers, and the board both write on.

The board is the GCS's internal key-value store: every process of the cluster reaches it without a
further service, and it is gone with the cluster. Values are JSON and decoded strictly: a reader
that doesn't understand a value must not guess.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter

from cluster.notices import BOARD_NAMESPACE as NAMESPACE
from cluster.notices import NOTICES_PREFIX, Notice, decode_notice

_SIGNALS_PREFIX = b"signals/"
_TARGETS_KEY = b"targets"
_DECISION_KEY = b"decision"
_WAITING_KEY = b"waiting"
_CLOSING_AGE_S_MAX = 10.0
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class Served:
    """What one pool has answered through one gateway since that started: only ever grows.

    `hold_s` adds up how long slots were held, `ttft_s` the time from arrival to the first token,
    `waited_s` the part of it before there was a slot, `decode_s` the time of the `decode_tokens`
    that came after it. `cached_tokens` is the part of `prompt_tokens` that engines had from earlier
    prompts and didn't read again. The last two add up squares over the requests: of the tokens read
    of each one's prompt, and of its output; 0 = a gateway that doesn't count them.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    hold_s: float = 0.0
    first_tokens: int = 0
    ttft_s: float = 0.0
    decode_tokens: int = 0
    decode_s: float = 0.0
    waited_s: float = 0.0
    cached_tokens: int = 0
    read_tokens_squared: int = 0
    output_tokens_squared: int = 0


@dataclass(frozen=True, slots=True)
class PoolSignal:
    """One pool as one gateway sees it. `kv_use_ratio` None means unknown, which is not zero.

    `ray_nodes` is the node of each replica, by Ray's ids in hexadecimal. `gpu_row` names the
    row of the GPU table that tells its speed, None = only measurements can. `gpu_shares` engines
    share a GPU in turns.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    pool: str
    site: str
    owned: bool
    accelerator: str
    market: str
    gpus_per_replica: int
    slots_per_replica: int
    min_replicas: int
    max_replicas: int
    replicas_running: int
    streams_running: int
    kv_use_ratio: float | None = None
    ray_nodes: tuple[str, ...] = ()
    gpu_row: str | None = None
    served: Served = Served()
    gpu_shares: int = 1


@dataclass(frozen=True, slots=True)
class ModelSignal:
    """The demand for one model at one gateway; `streams_running` counts this gateway's only.

    `waiting_may_burst` counts the waiting requests whose class and key allow a site not owned.
    `arrived` and `arrived_may_burst` count what came since the gateway started, served or not.
    The next three are the model's objective: what is promised, and what a late answer costs.
    `late` counts what was begun after the promise or not at all, `refused_may_burst` of the latter
    those that might have gone anywhere.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    model: str
    app: str
    waiting_public: int
    waiting_internal: int
    waiting_restricted: int
    waiting_may_burst: int
    oldest_wait_s: float
    pools: tuple[PoolSignal, ...] = ()
    arrived: int = 0
    arrived_may_burst: int = 0
    ttft_s_max: float = 2.0
    tpot_s_max: float = 0.1
    attainment_min: float = 0.99
    usd_per_late_request: float = 0.02
    late: int = 0
    refused_may_burst: int = 0


@dataclass(frozen=True, slots=True)
class GatewaySignals:
    """Everything one gateway replica reports, with the wall time it was written."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    gateway: str
    published_s: float
    models: tuple[ModelSignal, ...] = ()


@dataclass(frozen=True, slots=True)
class Targets:
    """Replicas wanted, by application and deployment, with the wall time of the decision."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    decided_s: float
    replicas: dict[str, dict[str, int]] = field(default_factory=dict)


_SIGNALS: TypeAdapter[GatewaySignals] = TypeAdapter(GatewaySignals)
_TARGETS: TypeAdapter[Targets] = TypeAdapter(Targets)
_DECISION: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])


def encode_signals(signals: GatewaySignals) -> bytes:
    """The signals as JSON."""
    return _SIGNALS.dump_json(signals)


def decode_signals(raw: bytes) -> GatewaySignals:
    """The signals in `raw`; ValueError if anything is missing, unknown or of the wrong type."""
    return _SIGNALS.validate_json(raw, strict=True)


def encode_targets(targets: Targets) -> bytes:
    """The targets as JSON."""
    return _TARGETS.dump_json(targets)


def decode_targets(raw: bytes) -> Targets:
    """The targets in `raw`; ValueError if anything is missing, unknown or of the wrong type."""
    return _TARGETS.validate_json(raw, strict=True)


class ClosingPools:
    """The pools on their way to zero, as `Blackboard.list_closing` last said.

    A read that fails keeps them closed: the GCS is slow for a moment more often than a decision
    changes. It does so for a while only: without a GCS nobody lowers a pool either.
    """

    def __init__(self, board: "Blackboard", *, clock: Callable[[], float] = time.monotonic) -> None:
        self._board = board
        self._clock = clock
        self._last: tuple[float, dict[str, list[str]]] = (-math.inf, {})

    def read(self, *, now_s: float) -> None:
        """Read the blackboard again at wall time `now_s`; raises and blocks as it does."""
        closing = self._board.list_closing(now_s=now_s)
        self._last = (self._clock(), closing)

    def list_closing(self) -> dict[str, list[str]]:
        """The pools by application; none if the last read that worked is too long ago."""
        read_s, closing = self._last
        return closing if self._clock() - read_s <= _CLOSING_AGE_S_MAX else {}


class Blackboard:
    """Signals, targets and the decision record in the GCS.

    Calls block for at most `timeout_s` and raise what the GCS client raises when it is away; they
    may be made from any thread. In an event loop, run them in a thread.
    """

    def __init__(self, gcs_client: Any, *, timeout_s: float = 1.0) -> None:
        self._gcs = gcs_client
        self._timeout_s = timeout_s

    @property
    def gcs_client(self) -> Any:
        """The client, for other parts of the board (`deployments.warm_board`)."""
        return self._gcs

    @classmethod
    def from_ray(cls, *, timeout_s: float = 1.0) -> "Blackboard":
        """The board of the cluster this process is connected to: an actor or a driver."""
        from ray.experimental.internal_kv import internal_kv_get_gcs_client  # noqa: PLC0415 - Ray

        client = internal_kv_get_gcs_client()
        if client is None:
            raise RuntimeError("Blackboard.from_ray needs a process connected to a Ray cluster.")
        return cls(client, timeout_s=timeout_s)

    @classmethod
    def from_address(cls, gcs_address: str, *, timeout_s: float = 1.0) -> "Blackboard":
        """The board of the cluster at `gcs_address`, without joining it."""
        from ray._raylet import GcsClient  # type: ignore[attr-defined] # noqa: PLC0415 - Ray

        return cls(GcsClient(address=gcs_address), timeout_s=timeout_s)

    def put_signals(self, signals: GatewaySignals) -> None:
        """Replace what this gateway said before."""
        self._put(_SIGNALS_PREFIX + signals.gateway.encode(), encode_signals(signals))

    def list_signals(self) -> list[GatewaySignals]:
        """What each gateway said last, by gateway; readers judge age by `published_s`."""
        return [decode_signals(raw) for raw in self.list_raw_signals().values()]

    def list_raw_signals(self) -> dict[str, bytes]:
        """The same by gateway and undecoded, for a reader that must survive unreadable ones."""
        keys = self._gcs.internal_kv_keys(_SIGNALS_PREFIX, NAMESPACE, self._timeout_s)
        found = {key: self._get(key) for key in sorted(keys)}
        return {
            key.removeprefix(_SIGNALS_PREFIX).decode(): raw
            for key, raw in found.items()
            if raw is not None
        }

    def forget_signals(self, gateway: str) -> None:
        """Remove what a gateway said; nothing happens if it said nothing."""
        key = _SIGNALS_PREFIX + gateway.encode()
        self._gcs.internal_kv_del(key, False, NAMESPACE, self._timeout_s)  # noqa: FBT003 - its API

    def put_targets(self, targets: Targets) -> None:
        """Replace the targets."""
        self._put(_TARGETS_KEY, encode_targets(targets))

    def get_targets(self) -> Targets | None:
        """The last targets; None if none were ever written."""
        raw = self._get(_TARGETS_KEY)
        return None if raw is None else decode_targets(raw)

    def list_closing(self, *, now_s: float) -> dict[str, list[str]]:
        """Pools on their way to zero, by application; none if the last decision is old.

        An autoscaler that is away must not keep a pool from answering.
        """
        decision = self.get_decision()
        if decision is None or now_s - float(decision["decided_s"]) > _CLOSING_AGE_S_MAX:
            return {}
        return dict(decision.get("closing", {}))

    def put_decision(self, decision: dict[str, Any]) -> None:
        """Replace the decision record."""
        self._put(_DECISION_KEY, _DECISION.dump_json(decision))

    def get_decision(self) -> dict[str, Any] | None:
        """The last decision record; None if none was ever written."""
        raw = self._get(_DECISION_KEY)
        return None if raw is None else _DECISION.validate_json(raw)

    def list_notices(self) -> list[Notice]:
        """What sites have announced to take away, by node; what can't be read is removed."""
        keys = self._gcs.internal_kv_keys(NOTICES_PREFIX, NAMESPACE, self._timeout_s)
        found: list[Notice] = []
        for key in sorted(keys):
            raw = self._get(key)
            try:
                if raw is not None:
                    found.append(decode_notice(raw))
            except ValueError:
                self.forget_notice(key.removeprefix(NOTICES_PREFIX).decode())
        return found

    def forget_notice(self, node: str) -> None:
        """Remove what was announced for a node; nothing happens if nothing was."""
        key = NOTICES_PREFIX + node.encode()
        self._gcs.internal_kv_del(key, False, NAMESPACE, self._timeout_s)  # noqa: FBT003 - its API

    def put_waiting(self, who: str, *, at_s: float) -> None:
        """Say that another autoscaler waits to take over."""
        self._put(_WAITING_KEY, _DECISION.dump_json({"who": who, "at_s": at_s}))

    def get_waiting(self, *, now_s: float) -> str | None:
        """Who waits to take over; None if nobody said so lately."""
        raw = self._get(_WAITING_KEY)
        if raw is None:
            return None
        said = _DECISION.validate_json(raw)
        return str(said["who"]) if now_s - float(said["at_s"]) <= _CLOSING_AGE_S_MAX else None

    def _put(self, key: bytes, value: bytes) -> None:
        self._gcs.internal_kv_put(key, value, True, NAMESPACE, self._timeout_s)  # noqa: FBT003 - its API

    def _get(self, key: bytes) -> bytes | None:
        value: bytes | None = self._gcs.internal_kv_get(key, NAMESPACE, self._timeout_s)
        return value
