"""What engines that share a GPU say and hear: a part of the blackboard.

Each such replica writes where it stands; the brain writes one set of orders for all. Values are
JSON and decoded strictly, as all of the board (`deployments.signals`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from cluster.notices import BOARD_NAMESPACE as NAMESPACE

WarmState = Literal["waits", "starting", "awake", "leaving", "asleep", "waking"]

_REPORT_PREFIX = b"warm/"
_ORDERS_KEY = b"warm-orders"
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class WarmReport:
    """One replica that shares its GPUs. `gpus` are "node/index"; `order` is the last it obeys.

    waits: its engine never ran; starting, awake, leaving (its streams end), waking: it has or takes
    GPU memory; asleep: it has none.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    replica_id: str
    app: str
    pool: str
    gpus: tuple[str, ...]
    state: WarmState
    order: int
    live: int
    at_s: float


@dataclass(frozen=True, slots=True)
class WarmOrders:
    """Which replicas may be awake, each with since when; `number` rises with every change.

    `next` are those for which others were told to sleep.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    number: int = 0
    awake: Mapping[str, float] = field(default_factory=dict)
    next: tuple[str, ...] = ()


_REPORT: TypeAdapter[WarmReport] = TypeAdapter(WarmReport)
_ORDERS: TypeAdapter[WarmOrders] = TypeAdapter(WarmOrders)


class WarmBoard:
    """Reports and orders in the GCS; calls block and raise as `signals.Blackboard`'s do."""

    def __init__(self, gcs_client: Any, *, timeout_s: float = 1.0) -> None:
        self._gcs = gcs_client
        self._timeout_s = timeout_s

    def put_report(self, report: WarmReport) -> None:
        """Replace what this replica said before."""
        self._put(_REPORT_PREFIX + report.replica_id.encode(), _REPORT.dump_json(report))

    def list_reports(self) -> list[WarmReport]:
        """What each replica said last, by id; what can't be read is removed: it is said again."""
        keys = self._gcs.internal_kv_keys(_REPORT_PREFIX, NAMESPACE, self._timeout_s)
        found: list[WarmReport] = []
        for key in sorted(keys):
            raw = self._gcs.internal_kv_get(key, NAMESPACE, self._timeout_s)
            try:
                if raw is not None:
                    found.append(_REPORT.validate_json(raw, strict=True))
            except ValidationError:
                self.forget_report(key.removeprefix(_REPORT_PREFIX).decode())
        return found

    def forget_report(self, replica_id: str) -> None:
        """Remove what a replica said; nothing happens if it said nothing."""
        key = _REPORT_PREFIX + replica_id.encode()
        self._gcs.internal_kv_del(key, False, NAMESPACE, self._timeout_s)  # noqa: FBT003 - its API

    def put_orders(self, orders: WarmOrders) -> None:
        """Replace the orders."""
        self._put(_ORDERS_KEY, _ORDERS.dump_json(orders))

    def get_orders(self) -> WarmOrders:
        """The last orders; none awake if none were ever written.

        Raises:
            ValueError: they can't be read: nobody may act on a guess.
        """
        raw = self._gcs.internal_kv_get(_ORDERS_KEY, NAMESPACE, self._timeout_s)
        return WarmOrders() if raw is None else _ORDERS.validate_json(raw, strict=True)

    def _put(self, key: bytes, value: bytes) -> None:
        self._gcs.internal_kv_put(key, value, True, NAMESPACE, self._timeout_s)  # noqa: FBT003 - its API
