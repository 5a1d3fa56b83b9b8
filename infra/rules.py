"""The alert rules as code: what somebody must look at, and what to type then.

Every expression uses names from `autoscaling.metrics`. Times and thresholds are arguments, so that
a cluster may set its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from autoscaling import metrics as m
from infra.prometheus import AUTOSCALER_JOB

Severity = Literal["page", "warning"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One alert: fires once its expression has had a result for `for_s` seconds."""

    name: str
    expr: str
    for_s: int
    severity: Severity
    summary: str
    action: str


@dataclass(frozen=True, slots=True)
class Thresholds:
    """When the rules fire. All in seconds."""

    burst_s_max: int = 2 * 3600
    listing_age_s_max: int = 120
    intent_age_s_max: int = 1200
    decision_age_s_max: int = 60


def build_rules(thresholds: Thresholds) -> tuple[Rule, ...]:
    """Return all alert rules, the most urgent first."""
    return (
        *_rules_of_the_head(thresholds),
        *_rules_of_money(thresholds),
        *_rules_of_sites(thresholds),
    )


def render_rules(rules: Sequence[Rule]) -> str:
    """Return the rules as the file that Prometheus reads."""
    group = {"name": "tidegate", "rules": [_render_rule(rule) for rule in rules]}
    return yaml.safe_dump({"groups": [group]}, sort_keys=False, width=100)


def _render_rule(rule: Rule) -> dict[str, Any]:
    return {
        "alert": rule.name,
        "expr": rule.expr,
        "for": f"{rule.for_s}s",
        "labels": {"severity": rule.severity},
        "annotations": {"summary": rule.summary, "action": rule.action},
    }


def _rules_of_the_head(limits: Thresholds) -> tuple[Rule, ...]:
    return (
        Rule(
            "TidegateHeadDown",
            f'absent(up{{job="{AUTOSCALER_JOB}"}} == 1)',
            60,
            "page",
            "The head or its autoscaler doesn't answer; nodes that run go on serving.",
            "tidegate doctor CLUSTER_FILE; ray up -y CLUSTER_FILE brings the head back.",
        ),
        Rule(
            "TidegateAutoscalerStuck",
            f"max({m.DECISION_AGE_S.name}) > {limits.decision_age_s_max}",
            60,
            "page",
            "The autoscaler answers and decides nothing.",
            "ray monitor CLUSTER_FILE shows its log.",
        ),
        Rule(
            "TidegateSourceUnreadable",
            f"min by (source) ({m.SOURCE_READABLE.name}) == 0",
            120,
            "warning",
            "The autoscaler can't read {{ $labels.source }}: its metrics have gaps.",
            "ray monitor CLUSTER_FILE shows why.",
        ),
        Rule(
            "TidegateNoOwnedCapacity",
            f'sum by (app) ({m.POOL_SLOTS.name}{{market="owned"}}) == 0'
            f" and on (app) sum by (app) ({m.WAITING.name}) > 0",
            120,
            "page",
            "{{ $labels.app }} has requests waiting and no owned replica that serves.",
            "tidegate status CLUSTER_FILE names the reason.",
        ),
    )


def _rules_of_money(limits: Thresholds) -> tuple[Rule, ...]:
    return (
        Rule(
            "TidegateBudgetHard",
            # A limit of 0 is reached from the start, and by intent: nobody is called for that.
            f'max by (limit) ({m.LIMIT_STATE.name}{{state="hard"}}) == 1'
            f" and on (limit) {m.LIMIT_USD.name} > 0",
            0,
            "page",
            "The limit {{ $labels.limit }} is reached: nothing that costs money is launched.",
            "tidegate status CLUSTER_FILE shows what spends; raise provider.limits or wait.",
        ),
        Rule(
            "TidegateBudgetSoft",
            f'max by (limit) ({m.LIMIT_STATE.name}{{state="soft"}}) == 1',
            0,
            "warning",
            "The limit {{ $labels.limit }} is nearly used.",
            "tidegate status CLUSTER_FILE shows what spends.",
        ),
        Rule(
            "TidegateBurstTooLong",
            f'max({m.BURST_STATE.name}{{state!="closed"}}) == 1',
            limits.burst_s_max,
            "warning",
            "Sites that aren't owned have been in use for a long time.",
            "tidegate status CLUSTER_FILE names the reason.",
        ),
        Rule(
            "TidegatePriceUnknown",
            f"sum by (site) ({m.PRICES_UNKNOWN.name}) > 0",
            60,
            "warning",
            "A node at {{ $labels.site }} runs whose price is unknown; launches are refused.",
            "Give its type usd_per_hour in provider.node_types.",
        ),
    )


def _rules_of_sites(limits: Thresholds) -> tuple[Rule, ...]:
    late = f'max by (site) ({m.PHASE_AGE_S.name}{{phase=~"intended|launched|terminating"}})'
    return (
        Rule(
            "TidegateCredentialsRefused",
            # One alert whatever the number of sites: the cause is one.
            f"max({m.CREDENTIALS_REFUSED.name}) == 1",
            30,
            "page",
            "A cloud doesn't accept our credentials: serving goes on, scaling is frozen.",
            "Renew them on the head (aws sts get-caller-identity must work there).",
        ),
        Rule(
            "TidegateListingStale",
            f"max by (site) ({m.LISTING_AGE_S.name}) > {limits.listing_age_s_max}"
            f" unless on (site) {m.CREDENTIALS_REFUSED.name} == 1",
            60,
            "warning",
            "{{ $labels.site }} has not been listed for {{ $value | humanizeDuration }}.",
            "ray monitor CLUSTER_FILE shows the error of each look.",
        ),
        Rule(
            "TidegateNeverListed",
            # Without a good look there is no age that could grow.
            f"(max by (site) ({m.LISTING_FAILED.name}) == 1"
            f" unless on (site) {m.LISTING_AGE_S.name})"
            f" unless on (site) {m.CREDENTIALS_REFUSED.name} == 1",
            limits.listing_age_s_max,
            "warning",
            "{{ $labels.site }} could never be listed: nothing is launched there.",
            "tidegate doctor CLUSTER_FILE checks what it needs; ray monitor CLUSTER_FILE shows the "
            "error of each look.",
        ),
        Rule(
            "TidegateCapacityErrors",
            f'sum by (site) (increase({m.FAILURES.name}{{code="no_capacity"}}[15m])) > 0'
            f" or sum by (site) ({m.HOLDS.name}) > 0",
            300,
            "warning",
            "{{ $labels.site }} has none of what we ask for.",
            "Add zones or instance types of equal resources to the node type.",
        ),
        Rule(
            "TidegateInstanceLeaked",
            f"{late} > {limits.intent_age_s_max}"
            f' or sum by (site) ({m.NODES.name}{{market="unknown"}}) > 0',
            120,
            "page",
            "{{ $labels.site }} has a node that neither comes up nor goes away, or of a type that "
            "isn't in the cluster file; it may cost money.",
            "tidegate infra sweep CLUSTER_FILE lists it and what would be done.",
        ),
    )
