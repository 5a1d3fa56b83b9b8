"""The demonstration on screen: sites, replicas, queue, $/h and where each answer came from."""

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from infra.demo import StepResult
from infra.observe import ClusterView
from infra.stream_client import Stream


class DemoView(Protocol):
    """Shows one moment of the demonstration."""

    def show(
        self, view: ClusterView, results: Sequence[StepResult], streams: Sequence[Stream], step: str
    ) -> None:
        """Show this moment."""
        ...


class LiveView:
    """A screen that is drawn anew each moment, for terminals."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def show(
        self, view: ClusterView, results: Sequence[StepResult], streams: Sequence[Stream], step: str
    ) -> None:
        """Draw the whole picture."""
        self._live.update(
            Group(
                Panel(escape(f"now: {step}"), title="Tidegate demo"),
                _render_pools(view, streams),
                _render_numbers(view, streams),
                render_results(results),
            )
        )


class LineView:
    """One line for each change, for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = ""

    def show(
        self, view: ClusterView, results: Sequence[StepResult], streams: Sequence[Stream], step: str
    ) -> None:
        """Print a line if anything but the counts of requests changed."""
        shown = f"{len(results)} steps shown"
        pools = ", ".join(f"{pool.pool} {pool.replicas_running} replicas" for pool in view.pools)
        nodes = ", ".join(f"{node['type']} {node['state']}" for node in view.nodes)
        line = f"[{shown}; now: {step}] {pools} | nodes: {nodes} | ${view.usd_per_hour:.2f}/h"
        if line != self._last:
            self._last = line
            self._console.print(
                f"{line} | waiting {view.waiting} | {_answers(streams)}",
                markup=False,
                soft_wrap=True,
            )


def render_results(results: Sequence[StepResult]) -> Table:
    """Return the table of finished steps."""
    table = Table("step", "result", "seen", "took")
    for result in results:
        verdict = "[green]shown[/]" if result.passed else "[red]failed[/]"
        table.add_row(escape(result.name), verdict, escape(result.seen), f"{result.took_s:.0f} s")
    return table


def _render_pools(view: ClusterView, streams: Sequence[Stream]) -> Table:
    open_by_site = Counter(stream.site for stream in streams if stream.is_open)
    table = Table("site", "pool", "replicas", "slots", "streams open")
    for pool in view.pools:
        table.add_row(
            pool.site,
            pool.pool,
            str(pool.replicas_running),
            str(pool.replicas_running * pool.slots_per_replica),
            str(open_by_site[pool.site]),
        )
    return table


def _render_numbers(view: ClusterView, streams: Sequence[Stream]) -> Panel:
    nodes = ", ".join(f"{node['type']} {node['state']}" for node in view.nodes) or "none"
    reasons = "; ".join(str(reason) for reason in view.decision.get("reasons", ())[:3])
    return Panel(
        escape(
            f"waiting {view.waiting}   ${view.usd_per_hour:.2f}/h   {_answers(streams)}\n"
            f"nodes: {nodes}\n"
            f"autoscaler: {reasons}"
        )
    )


def _answers(streams: Sequence[Stream]) -> str:
    ended = Counter(stream.site or "none" for stream in streams if stream.ended_s is not None)
    return "answered: " + (", ".join(f"{s} {n}" for s, n in sorted(ended.items())) or "none yet")
