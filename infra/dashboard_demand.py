"""Rows of the dashboard about requests: the situation now, demand and capacity, the burst."""

from autoscaling import metrics as m
from infra.panels import Panel, Query, Row
from infra.queries import max_of, rate_of, sum_of

_CLOSED = 'state="closed"'
_LIMIT_STEPS = ((None, "green"), (0.8, "orange"), (1.0, "red"))
_YES_IS_BAD = ((None, "green"), (1.0, "red"))
_NO_YES = {"0": "no", "1": "yes"}
_OFF_ON = {"0": " ", "1": "yes"}


def show_now() -> Row:
    """Return the row about the situation at a glance."""
    return Row(
        "Now",
        (
            Panel(
                "Open to the cloud",
                "stat",
                "none",
                (Query(f"1 - {max_of(m.BURST_STATE, where=_CLOSED)}", is_instant=True),),
                "Whether sites that aren't owned are in use or on their way.",
                width=4,
                height=5,
                mappings=_NO_YES,
            ),
            Panel(
                "Spend today",
                "stat",
                "currencyUSD",
                (Query(sum_of(m.SPEND_USD, where='period="day"'), is_instant=True),),
                "Accrued since midnight UTC, all sites.",
                width=4,
                height=5,
            ),
            Panel(
                "Spend this month",
                "stat",
                "currencyUSD",
                (Query(sum_of(m.SPEND_USD, where='period="month"'), is_instant=True),),
                "Accrued since the first of the month, UTC, all sites.",
                width=4,
                height=5,
            ),
            Panel(
                "Use of the limits",
                "stat",
                "percentunit",
                (Query(max_of(m.LIMIT_USE_RATIO, by="limit"), "{{limit}}", is_instant=True),),
                "Spent and committed as a share of each limit; launches stop at 100 %.",
                width=8,
                height=5,
                steps=_LIMIT_STEPS,
            ),
            Panel(
                "Credentials refused",
                "stat",
                "none",
                (Query(max_of(m.CREDENTIALS_REFUSED), is_instant=True),),
                "A cloud doesn't accept our credentials: scaling is frozen there.",
                width=4,
                height=5,
                steps=_YES_IS_BAD,
                mappings=_NO_YES,
            ),
        ),
    )


def show_demand() -> Row:
    """Return the row about demand against capacity, by site."""
    tokens = "tidegate_tokens_total"
    share = f"{rate_of(tokens, 'site')} / ignoring (site) group_left () {rate_of(tokens)}"
    ttft = rate_of("tidegate_ttft_seconds_bucket", "le, site")
    return Row(
        "Demand and capacity",
        (
            Panel(
                "Streams against slots by site",
                "timeseries",
                "short",
                (
                    Query(sum_of(m.POOL_STREAMS, "site"), "streams {{site}}"),
                    Query(sum_of(m.POOL_SLOTS, "site"), "slots {{site}}"),
                ),
                "Streams open, and how many the running replicas can hold.",
            ),
            Panel(
                "Queue",
                "timeseries",
                "short",
                (
                    Query(sum_of(m.WAITING, "app, data_class"), "{{app}} {{data_class}}"),
                    Query(sum_of(m.WAITING_MAY_BURST, "app"), "{{app}} may burst"),
                ),
                "Requests waiting for a slot; those that may burst are allowed off owned sites.",
            ),
            Panel(
                "Share of tokens by site",
                "timeseries",
                "percentunit",
                (Query(share, "{{site}}"),),
                "Where tokens were read and written.",
                width=8,
                is_stacked=True,
            ),
            Panel(
                "Requests per second by site",
                "timeseries",
                "short",
                (
                    Query(
                        rate_of("tidegate_requests_total", "site, outcome"), "{{site}} {{outcome}}"
                    ),
                ),
                "Requests finished, by what became of them.",
                width=8,
            ),
            Panel(
                "Time to first token, p99",
                "timeseries",
                "s",
                (Query(f"histogram_quantile(0.99, {ttft})", "{{site}}"),),
                "From a request's arrival to its first byte, waiting included.",
                width=8,
            ),
        ),
    )


def show_burst() -> Row:
    """Return the row about how open the cloud is, and why."""
    return Row(
        "Burst",
        (
            Panel(
                "Burst state",
                "state-timeline",
                "none",
                (Query(max_of(m.BURST_STATE, "state"), "{{state}}"),),
                "How open the sites that aren't owned are.",
                steps=((None, "transparent"), (1.0, "blue")),
                mappings=_OFF_ON,
            ),
            Panel(
                "Why",
                "state-timeline",
                "none",
                (Query(max_of(m.REASON, "code, subject"), "{{subject}}: {{code}}"),),
                "The codes of the last decision's reasons; `tidegate status` has the sentences.",
                steps=((None, "transparent"), (1.0, "purple")),
                mappings=_OFF_ON,
            ),
            Panel(
                "Replicas planned and running",
                "timeseries",
                "short",
                (Query(sum_of(m.POOL_REPLICAS, "app, pool, state"), "{{app}} {{pool}} {{state}}"),),
                "What the brain wants and what the gateways see.",
            ),
            Panel(
                "Shadow mode: replicas and late requests",
                "timeseries",
                "short",
                (
                    Query(sum_of(m.SHADOW_REPLICAS, "app, pool"), "{{app}} {{pool}} would run"),
                    Query(sum_of(m.SHADOW_LATE, "app, world"), "{{app}} late, {{world}}"),
                ),
                "What would run on sites that aren't owned, and what that would have spared.",
            ),
            Panel(
                "Shadow mode: cost",
                "timeseries",
                "currencyUSD",
                (Query(sum_of(m.SHADOW_USD, "app"), "{{app}}"),),
                "What it would have cost since shadow mode began.",
            ),
            Panel(
                "Launches refused by limit",
                "timeseries",
                "short",
                (Query(sum_of(m.REFUSALS, "limit"), "{{limit}}"),),
                "Launches the last tick wanted and a limit forbade.",
            ),
        ),
    )
