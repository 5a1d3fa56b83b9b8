"""Expressions over our metrics, limited to the cluster a person chose on the dashboard."""

from autoscaling.metrics import Metric

CLUSTER = 'ray_io_cluster=~"$Cluster"'
SESSION = 'SessionName=~"$SessionName"'


def select(metric: Metric, where: str = "") -> str:
    """Return the selector of a metric in the chosen cluster."""
    return f"{metric.name}{{{', '.join(filter(None, (where, CLUSTER)))}}}"


def sum_of(metric: Metric, by: str = "", where: str = "") -> str:
    """Return the sum of a metric over all labels but those it is split by."""
    return f"sum by ({by}) ({select(metric, where)})"


def max_of(metric: Metric, by: str = "", where: str = "") -> str:
    """Return the largest value of a metric over all labels but those it is split by."""
    return f"max by ({by}) ({select(metric, where)})"


def rate_of(name: str, by: str = "") -> str:
    """Return the rate of one of the gateway's counters."""
    return f"sum by ({by}) (rate({name}{{{CLUSTER}}}[$__rate_interval]))"
