"""What shadow mode found, as figures for programs and in words for people. Pure."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from autoscaling.shadow import Shadow, ShadowModel


def describe_shadow(shadow: Shadow, *, now_s: float) -> dict[str, dict[str, Any]]:
    """Return the figures by model, ready for JSON.

    Units: times are wall seconds, money is $. `late` is what gateways counted since `since_s`,
    `late_then` that less what virtual replicas would have begun in time. `ttft_mean_s` is the mean
    of the streams' first tokens, None = there were none; in `ttft_mean_then_s` the part of it that
    was waiting is as much shorter as all the waiting, added up, would have been.
    """
    return {app: _describe_model(model, now_s) for app, model in sorted(shadow.items())}


def say_shadow(described: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield one line of words for each model."""
    for app, figures in described.items():
        parts = [_say_replicas(figures), _say_late(figures), _say_ttft(figures)]
        yield f"{app}: {'; '.join(part for part in parts if part)}"


def _describe_model(model: ShadowModel, now_s: float) -> dict[str, Any]:
    total = model.total
    spared = max(0.0, model.real.late - model.virtual.late)
    pools = {
        name: {
            "replicas": len(pool.replicas),
            "ready": pool.count_ready(now_s),
            "since_s": min((one.asked_s for one in pool.replicas), default=None),
            "usd": round(pool.usd, 6),
            "usd_per_hour": round(pool.usd_per_hour_now, 6),
        }
        for name, pool in sorted(model.pools.items())
    }
    return {
        "since_s": model.since_s,
        "pools": pools,
        "usd": round(sum(pool.usd for pool in model.pools.values()), 6),
        "usd_per_hour": round(sum(pool.usd_per_hour_now for pool in model.pools.values()), 6),
        "requests": total.arrived,
        "late": total.late,
        "late_then": round(max(0.0, total.late - spared)),
        **_describe_ttft(model),
    }


def _describe_ttft(model: ShadowModel) -> dict[str, float | None]:
    total = model.total
    if not total.first_tokens:
        return {"ttft_mean_s": None, "ttft_mean_then_s": None}
    mean_s = total.ttft_s / total.first_tokens
    real_s, virtual_s = model.real.waited_s, model.virtual.waited_s
    left_ratio = min(1.0, virtual_s / real_s) if real_s > 0 else 1.0
    then_s = total.own_ttft_s + (mean_s - total.own_ttft_s) * left_ratio
    return {"ttft_mean_s": round(mean_s, 4), "ttft_mean_then_s": round(then_s, 4)}


def _say_replicas(figures: Mapping[str, Any]) -> str:
    running = [
        f"{pool['replicas']} {name} since {_say_time(pool['since_s'])}"
        + (f" ({pool['ready']} ready)" if pool["ready"] < pool["replicas"] else "")
        for name, pool in figures["pools"].items()
        if pool["replicas"]
    ]
    would = " and ".join(running) if running else "nothing on sites that aren't owned"
    return f"would run {would}, ${figures['usd_per_hour']:.2f}/h, ${figures['usd']:.2f} so far"


def _say_late(figures: Mapping[str, Any]) -> str:
    since = _say_time(figures["since_s"])
    late, requests = figures["late"], figures["requests"]
    return f"{late} of {requests} requests since {since} late now, {figures['late_then']} then"


def _say_ttft(figures: Mapping[str, Any]) -> str:
    now_s, then_s = figures["ttft_mean_s"], figures["ttft_mean_then_s"]
    return "" if now_s is None else f"mean TTFT {now_s:.2f} s now, {then_s:.2f} s then"


def _say_time(wall_s: float) -> str:
    return f"{datetime.fromtimestamp(wall_s, UTC):%H:%M} UTC"
