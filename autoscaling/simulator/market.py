"""Spot markets in simulated time: when no node is to be had, and when one is taken away.

Each node type and each node has a stream of chance of its own: what one policy launches changes
nobody else's luck, so policies with one seed meet the same market.
"""

from autoscaling.simulator.scenario import SpotMarket
from autoscaling.simulator.traffic import build_random

_S_PER_HOUR = 3600.0


def list_sold_out(
    node_type: str, spot: SpotMarket, *, seed: int, until_s: float
) -> tuple[tuple[float, float], ...]:
    """Return the spells without nodes of this type that begin before `until_s`: begin and end.

    Their mean is `sold_out_spell_s`, and so long between them that the ratio comes out.
    """
    ratio = spot.sold_out_ratio
    if ratio <= 0:
        return ()
    if ratio >= 1:
        return ((0.0, until_s),)
    chance = build_random(seed, f"market {node_type}")
    is_out = chance.random() < ratio
    spells: list[tuple[float, float]] = []
    begins_s = 0.0
    while begins_s < until_s:
        mean_s = spot.sold_out_spell_s * (1.0 if is_out else (1 - ratio) / ratio)
        ends_s = begins_s + chance.expovariate(1 / mean_s)
        if is_out:
            spells.append((begins_s, ends_s))
        begins_s, is_out = ends_s, not is_out
    return tuple(spells)


def draw_life_s(node_id: str, spot: SpotMarket, *, seed: int) -> float | None:
    """Return how long after joining a spot node is taken away; None = never."""
    if spot.losses_per_hour <= 0:
        return None
    chance = build_random(seed, f"loss {node_id}")
    return chance.expovariate(spot.losses_per_hour / _S_PER_HOUR)
