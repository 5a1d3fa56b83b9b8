"""Rows of the dashboard about what runs: money, nodes, sites, the autoscaler itself."""

from autoscaling import metrics as m
from infra.panels import Panel, Query, Row
from infra.queries import CLUSTER, SESSION, max_of, select, sum_of

_OFF_ON = {"0": " ", "1": "yes"}
_TABLE_NOISE = ("__name__", "instance", "job", "ray_io_cluster")


def show_money() -> Row:
    """Return the row about what is spent and promised."""
    return Row(
        "Money",
        (
            Panel(
                "Committed per hour by site and market",
                "timeseries",
                "currencyUSD",
                (
                    Query(sum_of(m.COMMITTED_USD_PER_HOUR, "site, market"), "{{site}} {{market}}"),
                    Query(max_of(m.LIMIT_USD, where='limit="usd_per_hour"'), "limit"),
                ),
                "Price per hour of all open nodes, launches in flight included.",
            ),
            Panel(
                "Spend this month against its limits",
                "timeseries",
                "currencyUSD",
                (
                    Query(sum_of(m.SPEND_USD, "period"), "{{period}}"),
                    Query(max_of(m.LIMIT_USD, "limit"), "limit {{limit}}"),
                ),
                "Accrued in the UTC day and month; limits also count what is promised.",
            ),
            Panel(
                "Limits: ok, soft, hard",
                "state-timeline",
                "none",
                (Query(max_of(m.LIMIT_STATE, "limit, state"), "{{limit}} {{state}}"),),
                "soft: nearly used; hard: nothing that costs money is launched.",
                steps=((None, "transparent"), (1.0, "orange")),
                mappings=_OFF_ON,
            ),
            Panel(
                "Nodes of unknown price",
                "timeseries",
                "short",
                (Query(sum_of(m.PRICES_UNKNOWN, "site"), "{{site}}"),),
                "They count as unknown, never as free: launches are refused meanwhile.",
            ),
        ),
    )


def show_nodes() -> Row:
    """Return the row about the nodes and how they come up."""
    stage_s = m.BOOT_STAGE_S.name
    mean_s = (
        f"max by (node_type, stage) ({stage_s}_sum{{{CLUSTER}}} / {stage_s}_count{{{CLUSTER}}})"
    )
    return Row(
        "Nodes",
        (
            Panel(
                "Nodes by site, market and phase",
                "timeseries",
                "short",
                (
                    Query(
                        sum_of(m.NODES, "site, market, phase") + " > 0",
                        "{{site}} {{market}} {{phase}}",
                    ),
                    Query(max_of(m.NODES_MAX, "site"), "{{site}} at most"),
                ),
                "Nodes in the ledger, from their intent on.",
                is_stacked=False,
            ),
            Panel(
                "Oldest node of each phase",
                "timeseries",
                "s",
                (
                    Query(
                        max_of(m.PHASE_AGE_S, "site, phase", 'phase!="running"'),
                        "{{site}} {{phase}}",
                    ),
                ),
                "Growing for long = a launch or an end that hangs.",
            ),
            Panel(
                "Boot stages by node type",
                "table",
                "s",
                (Query(mean_s),),
                "Mean time from the stage before, over all nodes recorded.",
                hidden_columns=_TABLE_NOISE,
            ),
            Panel(
                "Launches and failures per hour",
                "timeseries",
                "short",
                (
                    Query(
                        f"sum by (site) (increase({select(m.LAUNCHES)}[1h]))", "{{site}} launches"
                    ),
                    Query(
                        f"sum by (site, code) (increase({select(m.FAILURES)}[1h]))",
                        "{{site}} {{code}}",
                    ),
                ),
                "Intents written, and nodes that came to nothing or were lost.",
            ),
            Panel(
                "Memory used by node",
                "timeseries",
                "percentunit",
                (
                    Query(
                        f"max by (address) (ray_node_mem_used{{{SESSION}, {CLUSTER}}}"
                        f" / ray_node_mem_total{{{SESSION}, {CLUSTER}}})"
                        f" * on (address) group_left (site, node_type)"
                        f" max by (address, site, node_type) ({select(m.NODE_INFO)})",
                        "{{site}} {{node_type}} {{address}}",
                    ),
                ),
                "Ray's figure, with the site and type our ledger knows of the address.",
            ),
            Panel(
                "Cordoned and draining nodes",
                "timeseries",
                "short",
                (Query(sum_of(m.NODES_CORDONED, "site, cordon"), "{{site}} {{cordon}}"),),
                "What operators have taken out of service.",
            ),
        ),
    )


def show_sites() -> Row:
    """Return the row about how the sites answer."""
    return Row(
        "Sites",
        (
            Panel(
                "Age of the listing",
                "timeseries",
                "s",
                (Query(max_of(m.LISTING_AGE_S, "site"), "{{site}}"),),
                "Time since a site was last listed completely.",
                width=8,
            ),
            Panel(
                "Looks that fail",
                "state-timeline",
                "none",
                (Query(max_of(m.LISTING_FAILED, "site"), "{{site}}"),),
                "While a site can't be listed, what it has is taken for what it had.",
                width=8,
                steps=((None, "green"), (1.0, "red")),
                mappings={"0": "ok", "1": "failing"},
            ),
            Panel(
                "Sold out and held back",
                "timeseries",
                "short",
                (
                    Query(sum_of(m.SOLD_OUT, "site"), "{{site}} offerings sold out"),
                    Query(sum_of(m.HOLDS, "site"), "{{site}} types held"),
                ),
                "Offerings the site has none of, and types not asked for meanwhile.",
                width=8,
            ),
            Panel(
                "Sold out until",
                "table",
                "dateTimeFromNow",
                (Query(f"{select(m.SOLD_OUT_UNTIL)} * 1000"),),
                "Each sold-out offering and when it is asked for again.",
                hidden_columns=_TABLE_NOISE,
            ),
            Panel(
                "Held back until",
                "table",
                "dateTimeFromNow",
                (Query(f"{select(m.HELD_UNTIL)} * 1000"),),
                "Node types that aren't launched because all their offerings are sold out.",
                hidden_columns=_TABLE_NOISE,
            ),
        ),
    )


def show_autoscaler() -> Row:
    """Return the row about whether the autoscaler does its work."""
    return Row(
        "Autoscaler",
        (
            Panel(
                "Age of the decision",
                "timeseries",
                "s",
                (Query(max_of(m.DECISION_AGE_S), "age"),),
                "The brain decides every second.",
                width=8,
            ),
            Panel(
                "Time of a tick",
                "timeseries",
                "s",
                (Query(max_of(m.TICK_S, "loop"), "{{loop}}"),),
                "How long the last tick of each loop took.",
                width=8,
            ),
            Panel(
                "Lease held, sources readable",
                "state-timeline",
                "none",
                (
                    Query(max_of(m.LEASE_HELD), "lease"),
                    Query(f"min by (source) ({select(m.SOURCE_READABLE)})", "{{source}}"),
                ),
                "A source that can't be read leaves gaps in what comes from it.",
                width=8,
                steps=((None, "red"), (1.0, "green")),
                mappings={"0": "no", "1": "yes"},
            ),
        ),
    )
