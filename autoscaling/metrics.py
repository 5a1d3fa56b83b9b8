"""The list of our metrics: every name the autoscaler exports, with its type, labels and meaning.

Dashboards, alert rules, the documentation and the exporter take the names from here, so that no
panel can ask for what doesn't exist. Labels are closed sets: names from the cluster file and the
serve file, phases, limits, codes; nothing a client writes becomes a label. Values come from
`autoscaling.metric_samples`, reading and serving is `autoscaling.metrics_exporter`. The gateway's
metrics about requests are in `deployments.metrics`.
"""

from dataclasses import dataclass
from typing import Literal

MetricKind = Literal["gauge", "counter", "summary"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. The unit is in its name; without one it is a count or a 0/1 state."""

    name: str
    kind: MetricKind
    labels: tuple[str, ...]
    meaning: str


NODES = Metric(
    "tidegate_nodes",
    "gauge",
    ("site", "node_type", "market", "phase"),
    "Nodes in the ledger that aren't closed, by phase; market unknown = type not in the file.",
)
NODES_MAX = Metric(
    "tidegate_nodes_max", "gauge", ("site",), "Nodes the site may hold at once, the head included."
)
NODE_INFO = Metric(
    "tidegate_node_info",
    "gauge",
    ("node", "node_type", "site", "market", "address"),
    "1 for each running node; join Ray's metrics with it by address.",
)
NODES_CORDONED = Metric(
    "tidegate_nodes_cordoned",
    "gauge",
    ("site", "cordon"),
    "Nodes an operator has cordoned, or drains.",
)
PHASE_AGE_S = Metric(
    "tidegate_phase_age_seconds",
    "gauge",
    ("site", "phase"),
    "How long the oldest node of a phase has been in it, 0 = none; intended = open intents.",
)
LAUNCHES = Metric(
    "tidegate_launches_total",
    "counter",
    ("site", "node_type", "market"),
    "Intents ever written to the ledger.",
)
FAILURES = Metric(
    "tidegate_launch_failures_total",
    "counter",
    ("site", "node_type", "code"),
    "Nodes that came to nothing or were lost, by code.",
)
REFUSALS = Metric(
    "tidegate_launches_refused",
    "gauge",
    ("limit",),
    "Launches the last scheduler tick wanted and a limit forbade.",
)
SPEND_USD = Metric(
    "tidegate_spend_usd",
    "gauge",
    ("site", "period"),
    "Money accrued since the UTC day or month began.",
)
COMMITTED_USD_PER_HOUR = Metric(
    "tidegate_committed_usd_per_hour",
    "gauge",
    ("site", "market"),
    "Price of all open nodes whose price is known, launches in flight included.",
)
PRICES_UNKNOWN = Metric(
    "tidegate_nodes_price_unknown",
    "gauge",
    ("site",),
    "Open nodes without a known price; they count as unknown, never as free.",
)
LIMIT_USD = Metric(
    "tidegate_limit_usd", "gauge", ("limit",), "The limits on money of the cluster file."
)
LIMIT_USE_RATIO = Metric(
    "tidegate_limit_use_ratio",
    "gauge",
    ("limit",),
    "Committed or accrued money as a share of its limit; 1 = reached.",
)
LIMIT_STATE = Metric(
    "tidegate_limit_state",
    "gauge",
    ("limit", "state"),
    "1 for the state the limit is in: ok, soft (from soft_ratio on), hard (reached).",
)
SOLD_OUT_UNTIL = Metric(
    "tidegate_sold_out_until_timestamp_seconds",
    "gauge",
    ("site", "instance_type", "zone", "market", "code"),
    "Until when a sold-out offering isn't asked for, Unix time.",
)
SOLD_OUT = Metric(
    "tidegate_sold_out_offerings", "gauge", ("site",), "Offerings that are sold out now."
)
HELD_UNTIL = Metric(
    "tidegate_hold_until_timestamp_seconds",
    "gauge",
    ("site", "node_type"),
    "Until when a node type isn't launched because its site has none, Unix time.",
)
HOLDS = Metric("tidegate_holds", "gauge", ("site",), "Node types that are held back now.")
BURST_STATE = Metric(
    "tidegate_burst_state",
    "gauge",
    ("state",),
    "1 for how open the sites that aren't owned are: closed, opening, open, closing.",
)
REASON = Metric(
    "tidegate_decision_reason",
    "gauge",
    ("code", "subject"),
    "1 for each reason of the last decision, by its code and its model or pool.",
)
SHADOW_REPLICAS = Metric(
    "tidegate_shadow_replicas",
    "gauge",
    ("app", "pool"),
    "Replicas that shadow mode would run and doesn't; 0 for owned pools and while acting.",
)
SHADOW_USD = Metric(
    "tidegate_shadow_usd",
    "gauge",
    ("app",),
    "What they would have cost since shadow mode began.",
)
SHADOW_LATE = Metric(
    "tidegate_shadow_late_requests",
    "gauge",
    ("app", "world"),
    "Late requests since shadow mode began: as they were (real), as they would have been (shadow).",
)
POOL_REPLICAS = Metric(
    "tidegate_pool_replicas",
    "gauge",
    ("app", "pool", "site", "market", "state"),
    "Replicas of a pool: planned by the brain, running as the gateways see them.",
)
POOL_SLOTS = Metric(
    "tidegate_pool_slots",
    "gauge",
    ("app", "pool", "site", "market"),
    "Streams the running replicas of a pool can hold.",
)
POOL_STREAMS = Metric(
    "tidegate_pool_streams",
    "gauge",
    ("app", "pool", "site", "market"),
    "Streams open on a pool, all gateways together.",
)
WAITING = Metric(
    "tidegate_model_waiting",
    "gauge",
    ("app", "data_class"),
    "Requests waiting for a slot, all gateways together.",
)
WAITING_MAY_BURST = Metric(
    "tidegate_model_waiting_may_burst",
    "gauge",
    ("app",),
    "Waiting requests whose class and key allow a site that isn't owned.",
)
BOOT_STAGE_S = Metric(
    "tidegate_boot_stage_seconds",
    "summary",
    ("site", "node_type", "stage"),
    "Time from the stage before until this one, over all nodes recorded.",
)
LISTING_AGE_S = Metric(
    "tidegate_listing_age_seconds",
    "gauge",
    ("site",),
    "Time since the site was last listed completely.",
)
LISTING_FAILED = Metric(
    "tidegate_listing_failed", "gauge", ("site",), "1 while the site can't be listed."
)
CREDENTIALS_REFUSED = Metric(
    "tidegate_credentials_refused",
    "gauge",
    ("site",),
    "1 while the site doesn't accept our credentials: nothing starts or ends there.",
)
LEASE_HELD = Metric(
    "tidegate_lease_held", "gauge", (), "1 while an autoscaler holds the lease to act."
)
TICK_S = Metric(
    "tidegate_tick_seconds", "gauge", ("loop",), "How long the last tick of a loop took."
)
DECISION_AGE_S = Metric(
    "tidegate_decision_age_seconds", "gauge", (), "Time since the brain last decided."
)
SOURCE_READABLE = Metric(
    "tidegate_source_readable",
    "gauge",
    ("source",),
    "1 if this scrape could read the source (cluster_file, ledger, decision, signals); what "
    "comes from one that is 0 is missing.",
)

METRICS: tuple[Metric, ...] = tuple(
    found for found in list(globals().values()) if isinstance(found, Metric)
)
