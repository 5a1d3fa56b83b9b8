"""Findings as a table and as data for other programs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.markup import escape
from rich.table import Table

from infra.preflight import Finding

_COLOURS = {"pass": "green", "warn": "yellow", "fail": "red"}


def describe_findings(findings: Sequence[Finding]) -> Mapping[str, Any]:
    """Return the findings ready for JSON, and how many of each verdict there are."""
    counts = dict.fromkeys(_COLOURS, 0)
    for finding in findings:
        counts[finding.verdict] += 1
    return {"findings": [asdict(finding) for finding in findings], "counts": counts}


def render_findings(findings: Sequence[Finding]) -> Table:
    """Return what `tidegate doctor` shows."""
    table = Table("check", "verdict", "found", "fix")
    for finding in findings:
        verdict = f"[{_COLOURS[finding.verdict]}]{finding.verdict}[/]"
        table.add_row(escape(finding.check), verdict, escape(finding.detail), escape(finding.fix))
    return table
