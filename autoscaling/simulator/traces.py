"""Trace files in four formats, told apart by their first line; `.gz` is read as it is.

Azure LLM inference CSV    TIMESTAMP,ContextTokens,GeneratedTokens
Mooncake JSONL             {"timestamp": ms, "input_length", "output_length", "hash_ids"}
ServeGen rate CSV          t_s,rate_rps[,active_clients]       lengths from a PDF archive beside it
Tidegate CSV               arrival_s,prompt_tokens,output_tokens[,restricted]
"""

import csv
import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from autoscaling.simulator.servegen import RateCurve, draw_servegen
from autoscaling.simulator.traffic import TraceRequest, Traffic, build_traffic, spread_grid
from cluster.errors import ConfigError

_AZURE = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]
_SERVEGEN = ["t_s", "rate_rps"]
_OURS = ["arrival_s", "prompt_tokens", "output_tokens"]
_MS = 1e-3
_FRACTION_DIGITS = 6


@dataclass(frozen=True, slots=True)
class RateReading:
    """How a rate curve becomes requests; the other formats hold requests and need none of it.

    `lengths` is an archive of ServeGen length distributions, `load_rps` the mean rate wanted,
    `until_s` where the curve is cut.
    """

    lengths: Path | None = None
    load_rps: float | None = None
    until_s: float | None = None


def read_trace(path: Path, *, seed: int, rates: RateReading | None = None) -> Traffic:
    """Return the traffic in a file.

    Raises:
        ConfigError: it can't be read, or a line is wrong: file, line, value and rule are named.
    """
    lines = _read_lines(path)
    first = lines[0].strip() if lines else ""
    if first.startswith("{"):
        return _read_mooncake(path, lines, seed=seed)
    header = [name.strip() for name in first.split(",")]
    if header[: len(_AZURE)] == _AZURE:
        return _read_azure(path, lines)
    if header[: len(_SERVEGEN)] == _SERVEGEN:
        reading = rates or RateReading()
        curve = RateCurve(_name_of(path), _read_rates(path, lines, reading.until_s))
        if reading.load_rps is not None:
            curve = curve.scale_to(reading.load_rps)
        return draw_servegen(curve, lengths=reading.lengths, seed=seed)
    if header[: len(_OURS)] == _OURS:
        return _read_ours(path, lines)
    return _fail(path, 1, first[:60], f"begin with one of {_AZURE}, {_SERVEGEN}, {_OURS} or {{")


def _read_lines(path: Path) -> list[str]:
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except (OSError, UnicodeDecodeError, EOFError) as exc:
        raise ConfigError(f"{path} must be a readable trace in UTF-8; got: {exc}.") from exc
    return text.splitlines()


def _name_of(path: Path) -> str:
    return path.name.removesuffix(".gz").rsplit(".", 1)[0]


def _fail(path: Path, line: int, value: object, rule: str) -> NoReturn:
    raise ConfigError(f"{path}, line {line}: must {rule}; got {value!r}.")


def _list_rows(path: Path, lines: list[str], columns: int) -> Iterator[tuple[int, list[str]]]:
    for number, row in enumerate(csv.reader(lines[1:]), start=2):
        if not row:
            continue
        if len(row) < columns:
            _fail(path, number, ",".join(row), f"have {columns} values")
        yield number, row


def _read_count(path: Path, line: int, text: str, name: str) -> int:
    try:
        count = int(text)
    except (TypeError, ValueError):
        _fail(path, line, text, f"have a whole number as {name}")
    if count < 0:
        _fail(path, line, text, f"have {name} of 0 or more")
    return max(1, count)


def _read_number(path: Path, line: int, text: str, name: str) -> float:
    try:
        number = float(text)
    except ValueError:
        _fail(path, line, text, f"have a number as {name}")
    if not 0 <= number < float("inf"):
        _fail(path, line, text, f"have {name} of 0 or more")
    return number


def _read_azure(path: Path, lines: list[str]) -> Traffic:
    found: list[TraceRequest] = []
    first: datetime | None = None
    for number, row in _list_rows(path, lines, len(_AZURE)):
        whole, _, fraction = row[0].partition(".")
        try:
            # The file has 7 decimals, Python reads 6.
            text = f"{whole}.{fraction[:_FRACTION_DIGITS] or '0'}+0000"
            at = datetime.strptime(text, "%Y-%m-%d %H:%M:%S.%f%z")
        except ValueError:
            _fail(path, number, row[0], "have a TIMESTAMP such as 2023-11-16 18:15:46.6805900")
        first = first or at
        arrival_s = (at - first).total_seconds()
        if arrival_s < 0:
            _fail(path, number, row[0], "not be before the first TIMESTAMP")
        prompt = _read_count(path, number, row[1], "ContextTokens")
        output = _read_count(path, number, row[2], "GeneratedTokens")
        found.append(TraceRequest(arrival_s, prompt, output))
    return build_traffic(_name_of(path), found, 0.0)


def _read_mooncake(path: Path, lines: list[str], *, seed: int) -> Traffic:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            _fail(path, number, line[:60], "be a JSON object")
        missing = {"timestamp", "input_length", "output_length"} - set(row)
        if missing:
            _fail(path, number, line[:60], f"have {', '.join(sorted(missing))}")
        rows.append({**row, "line": number})
    times = [_read_number(path, r["line"], r["timestamp"], "timestamp") * _MS for r in rows]
    found = [
        TraceRequest(
            arrival_s=arrival_s,
            prompt_tokens=_read_count(path, row["line"], row["input_length"], "input_length"),
            output_tokens=_read_count(path, row["line"], row["output_length"], "output_length"),
            blocks=tuple(row.get("hash_ids", ())),
        )
        for row, arrival_s in zip(rows, spread_grid(times, seed=seed), strict=True)
    ]
    return build_traffic(_name_of(path), found, 0.0)


def _read_rates(
    path: Path, lines: list[str], until_s: float | None
) -> tuple[tuple[float, float], ...]:
    found = (
        (
            _read_number(path, number, row[0], "t_s"),
            _read_number(path, number, row[1], "rate_rps"),
        )
        for number, row in _list_rows(path, lines, len(_SERVEGEN))
    )
    return tuple(bin_ for bin_ in found if until_s is None or bin_[0] < until_s)


def _read_ours(path: Path, lines: list[str]) -> Traffic:
    found: list[TraceRequest] = []
    for number, row in _list_rows(path, lines, len(_OURS)):
        word = row[3].strip().lower() if len(row) > len(_OURS) else "false"
        if word not in {"true", "false"}:
            _fail(path, number, row[3], "have true or false as restricted")
        found.append(
            TraceRequest(
                arrival_s=_read_number(path, number, row[0], "arrival_s"),
                prompt_tokens=_read_count(path, number, row[1], "prompt_tokens"),
                output_tokens=_read_count(path, number, row[2], "output_tokens"),
                is_restricted=word == "true",
            )
        )
    return build_traffic(_name_of(path), found, 0.0)
