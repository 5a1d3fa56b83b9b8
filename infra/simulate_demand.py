"""A simulation's traffic as asked for on the command line: read or made, scaled, cut, marked."""

from dataclasses import dataclass
from pathlib import Path

from autoscaling.simulator.generators import GENERATORS, Shape, generate
from autoscaling.simulator.scenario import Scenario
from autoscaling.simulator.traces import RateReading, is_rate_curve, read_trace
from autoscaling.simulator.traffic import (
    Traffic,
    clip_lengths,
    cut_traffic,
    mark_restricted,
    rescale_traffic,
    scale_prompts,
)
from cluster.errors import ConfigError

_S_PER_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class AskedTraffic:
    """What arrives: a file or a generator, and what is done to it. At most one of the scalings."""

    source: str
    rescale: float | None = None
    load_rps: float | None = None
    hours: float | None = None
    restricted: float = 0.0
    prompt_scale: float = 1.0
    lengths: Path | None = None

    @property
    def until_s(self) -> float | None:
        """Where the traffic ends, None = where it ends by itself."""
        return None if self.hours is None else self.hours * _S_PER_HOUR


def check_asked(asked: AskedTraffic) -> None:
    """Return if the wishes go together.

    Raises:
        ConfigError: they don't, or a number makes no sense.
    """
    if asked.rescale is not None and asked.load_rps is not None:
        raise ConfigError("--rescale and --load must not be given together: each sets the rate.")
    for option, value in (("--load", asked.load_rps), ("--hours", asked.hours)):
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"{option} must be above 0; got {value:g}.")


def prepare_traffic(asked: AskedTraffic, scenario: Scenario, *, seed: int) -> tuple[Traffic, str]:
    """Return the traffic, cut to what the model can take, and what a person should know of it.

    Raises:
        ConfigError: there is no such trace, it holds a mistake, or nothing arrives.
    """
    check_asked(asked)
    traffic, is_at_load = _load(asked, seed=seed)
    if asked.until_s is not None:
        traffic = cut_traffic(traffic, asked.until_s)
    if not traffic.requests:
        raise ConfigError(f"{asked.source} must hold at least one request; got none.")
    factor = asked.rescale
    if asked.load_rps is not None and not is_at_load:
        factor = asked.load_rps / traffic.mean_rps
    if factor is not None:
        traffic = rescale_traffic(traffic, factor, seed=seed)
    if asked.prompt_scale != 1.0:
        traffic = scale_prompts(traffic, asked.prompt_scale)
    if asked.restricted:
        traffic = mark_restricted(traffic, asked.restricted, seed=seed)
    traffic, cut = clip_lengths(traffic, context_tokens=scenario.model.context_tokens)
    note = ""
    if cut:
        note = (
            f"{cut} of {len(traffic.requests)} requests were cut to the model's context of "
            f"{scenario.model.context_tokens} tokens"
        )
    return traffic, note


def _load(asked: AskedTraffic, *, seed: int) -> tuple[Traffic, bool]:
    """Return the traffic, and whether it was drawn for the wanted load already."""
    if asked.source in GENERATORS:
        usual = Shape()
        shape = Shape(
            mean_rps=asked.load_rps or usual.mean_rps,
            duration_s=asked.until_s or usual.duration_s,
        )
        return generate(asked.source, shape, seed=seed), True
    path = Path(asked.source)
    if not path.is_file():
        raise ConfigError(
            f"TRACE must be a file or one of {', '.join(GENERATORS)}; got {asked.source!r}."
        )
    reading = RateReading(lengths=asked.lengths, load_rps=asked.load_rps, until_s=asked.until_s)
    is_at_load = asked.load_rps is not None and is_rate_curve(path)
    return read_trace(path, seed=seed, rates=reading), is_at_load
