"""The report of a simulation: one HTML file that needs nothing but a browser.

The figures and tables stand in the page itself and are read without scripts; charts are drawn by
the page's own script from JSON beside it. Everything that comes from a trace, a file or a policy
is escaped: as HTML where it is HTML, and in the JSON so that it can't end its element.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from infra.simulate_run import Finished
from infra.simulate_series import build_pools, build_series
from infra.simulate_view import Subject
from infra.what_if import say_duration

_TEMPLATES = Path(__file__).parent / "templates"
_SCRIPTS = ("simulate_chart.js", "simulate_page.js", "simulate_read.js")
_OURS, _RAY = "tidegate", "ray-default"


def write_html(
    path: Path, finished: Finished, subject: Subject, content: Mapping[str, Any]
) -> None:
    """Write the page to a file, over what may be there."""
    path.write_text(render_html(finished, subject, content), encoding="utf-8")


def render_html(finished: Finished, subject: Subject, content: Mapping[str, Any]) -> str:
    """Return the page."""
    page = Template(_read("simulate.html"))
    return page.substitute(
        title=escape(f"{content['trace']} simulated"),
        subtitle=escape(_say_traffic(content)),
        headline=escape(_say_headline(content["policies"])),
        summary=_render_summary(content["policies"], finished),
        what_if=_render_what_if(content.get("what_if")),
        setup=_render_setup(finished, subject, content),
        style=_read("simulate.css"),
        script="".join(map(_read, _SCRIPTS)),
        data=dump_data(_build_data(finished, subject, content)),
    )


def dump_data(data: Mapping[str, Any]) -> str:
    """Return JSON that can stand inside a script element, whatever its texts hold."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _read(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _build_data(finished: Finished, subject: Subject, content: Mapping[str, Any]) -> dict[str, Any]:
    traffic = finished.first
    timelines = finished.timelines
    first = next(iter(timelines.values()), None)
    scenario = subject.scenario
    return {
        "duration_s": content["duration_s"],
        "bin_s": first.bin_s if first else 0,
        "arrivals": first.arrivals if first else [],
        "ttft_s_max": scenario.slo.ttft_s,
        "pools": build_pools(traffic, scenario) if traffic is not None else [],
        "policies": [
            {
                "name": row["name"],
                "slo_attainment": row["slo_attainment"],
                "cloud_usd": row["cloud_usd"],
                "series": build_series(timelines[row["name"]], scenario)
                if row["name"] in timelines
                else None,
            }
            for row in content["policies"]
        ],
    }


def _say_traffic(content: Mapping[str, Any]) -> str:
    seconds = content["duration_s"]
    rate = content["requests"] / seconds if seconds else 0.0
    seeds = content["seeds"]
    text = f"{content['requests']:,} requests in {say_duration(seconds)}, {rate:.1f} a second"
    if len(seeds) > 1:
        return f"{text}. Figures are means of {len(seeds)} seeds; charts show seed {seeds[0]}."
    return f"{text}. Seed {seeds[0]}."


def _say_headline(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what matters in a sentence: how often the promise was kept, and for how much."""
    known = {row["name"]: row for row in rows}
    row = known.get(_OURS) or next(iter(rows), None)
    if row is None:
        return "Nothing was finished."
    text = (
        f"{row['name']} kept the promise for {row['slo_attainment']:.1%} of the requests "
        f"and spent ${row['cloud_usd']:,.2f} on the cloud"
    )
    other = known.get(_RAY)
    if other is None or row is other:
        return f"{text}."
    return (
        f"{text}; {_RAY} kept it for {other['slo_attainment']:.1%} "
        f"and spent ${other['cloud_usd']:,.2f}."
    )


def _render_summary(rows: Sequence[Mapping[str, Any]], finished: Finished) -> str:
    """Return the table of policies; those with a timeline can be chosen."""
    dearest = max((row["cloud_usd"] for row in rows), default=0.0)
    is_priced = any(row["owned_usd"] for row in rows)
    heads = ["Policy", "SLO met", "TTFT p50", "TTFT p99", "Cloud $"]
    heads += ["Owned $"] if is_priced else []
    heads += ["Refused", "Failed", "Launches", "Turns"]
    lines: list[str] = []
    for row in rows:
        cells = [
            _render_bar(f"{row['slo_attainment']:.1%}", row["slo_attainment"], "met"),
            _say_seconds(row["ttft_p50_s"]),
            _say_seconds(row["ttft_p99_s"]),
            _render_bar(f"{row['cloud_usd']:,.2f}", row["cloud_usd"] / (dearest or 1), "usd"),
        ]
        cells += [f"{row['owned_usd']:,.2f}"] if is_priced else []
        cells += [
            f"{row['rejected']:,.0f}",
            f"{row['failed'] + row['unfinished']:,.0f}",
            f"{row['launches']:,.0f}",
            f"{row['reversals']:,.0f}",
        ]
        data = "".join(f"<td>{cell}</td>" for cell in cells)
        lines.append(f"<tr>{_render_name(row, finished)}{data}</tr>")
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    return f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"


def _render_name(row: Mapping[str, Any], finished: Finished) -> str:
    name = escape(row["name"])
    if row["name"] in finished.timelines:
        choice = f'<input type="radio" name="policy" value="{name}">'
        return f'<th scope="row"><label>{choice}{name}</label></th>'
    note = escape(row["note"] or "no timeline")
    return f'<th scope="row"><span class="bound" title="{note}">{name}</span></th>'


def _render_bar(text: str, share: float, kind: str) -> str:
    width = max(0.0, min(1.0, share))
    return f'<span class="bar {kind}" style="--share:{width:.4f}">{escape(text)}</span>'


def _say_seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"


def _render_what_if(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    lines = "".join(f"<li>{escape(line)}</li>" for line in found["arithmetic"])
    return (
        '<section class="card"><h2>One more node</h2>'
        f'<p class="answer">{escape(found["answer"])}</p><ul>{lines}</ul>'
        f'<p class="muted">{escape(found["caution"])}</p></section>'
    )


def _render_setup(finished: Finished, subject: Subject, content: Mapping[str, Any]) -> str:
    """Return what was simulated: the promise, the pools and their nodes, what is assumed."""
    scenario = subject.scenario
    spot = scenario.spot
    facts = [
        (
            f"Promise: first token within {scenario.slo.ttft_s:g} s, then "
            f"{scenario.slo.tpot_s:g} s a token; "
            "a request that is refused, fails or comes later misses it."
        ),
        (
            f"A late request is said to cost ${scenario.model.objective.usd_per_late_request:g}; "
            f"limit ${scenario.settings.limits.usd_per_hour:.2f} an hour."
        ),
        (
            f"Spot: {spot.losses_per_hour:g} losses an hour and node, sold out "
            f"{spot.sold_out_ratio:.0%} of the time. Assumed, as boot times are."
        ),
        "A replica's rate is at this traffic's mean lengths within the promised time per token.",
    ]
    if finished.is_interrupted:
        facts.insert(0, "Interrupted: not everything that was asked for has been run.")
    facts += [f"{row['name']}: {row['note']}." for row in content["policies"] if row["note"]]
    pools = build_pools(finished.first, scenario) if finished.first is not None else []
    heads = ("Pool", "Replicas", "Slots each", "Requests/s each")
    rows = [
        (
            pool["name"],
            f"{pool['replicas_min']} to {pool['replicas_max']}",
            pool["slots"],
            f"{pool['rps']:.2f}",
        )
        for pool in pools
    ]
    kinds = [
        (kind.name, kind.site, kind.market, f"{kind.min_nodes} to {kind.max_nodes}",
         f"{kind.usd_per_hour:.4f}" if kind.market != "owned" else "owned")
        for kind in scenario.settings.node_types.values()
        if kind.max_nodes > 0
    ]  # fmt: skip
    items = "".join(f"<li>{escape(fact)}</li>" for fact in facts)
    nodes = _render_table(("Node type", "Site", "Market", "Nodes", "$ an hour"), kinds)
    return f"<ul>{items}</ul><div class='pair'>{_render_table(heads, rows)}{nodes}</div>"


def _render_table(heads: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
