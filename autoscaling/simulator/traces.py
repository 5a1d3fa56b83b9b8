"""Trace files in four formats, told apart by their first line; `.gz` is read as it is.

Azure LLM inference CSV    TIMESTAMP,ContextTokens,GeneratedTokens
Mooncake JSONL             {"timestamp": ms, "input_length", "output_length", "hash_ids"}
ServeGen rate CSV          t_s,rate_rps[,active_clients]       lengths from a PDF archive beside it
Tidegate CSV               arrival_s,prompt_tokens,output_tokens[,restricted]
"""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, TextIO

from autoscaling.simulator.servegen import RateCurve, draw_servegen
from autoscaling.simulator.traffic import TraceRequest, Traffic, build_traffic, spread_grid
from cluster.errors import ConfigError

_AZURE = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]
_SERVEGEN = ["t_s", "rate_rps"]
_OURS = ["arrival_s", "prompt_tokens", "output_tokens"]
_MOONCAKE = ("timestamp", "input_length", "output_length")
_MS = 1e-3
_GZIP_MAGIC = b"\x1f\x8b"
_REQUESTS_MAX = 2_000_000
# Later than any trace begins and earlier than any clock: told apart from seconds since 1970.
_BEGIN_S_MAX = 1e8


@dataclass(frozen=True, slots=True)
class RateReading:
    """How a trace is read. `until_s`: nothing that arrives later, None = all of it.

    The others are for rate curves only, the other formats hold requests: `lengths` is an archive
    of ServeGen length distributions, `load_rps` the mean rate wanted.
    """

    lengths: Path | None = None
    load_rps: float | None = None
    until_s: float | None = None


def read_trace(path: Path, *, seed: int, rates: RateReading | None = None) -> Traffic:
    """Return the traffic in a file.

    Raises:
        ConfigError: it can't be read, or a line is wrong: file, line, value and rule are named.
    """
    reading = rates or RateReading()
    with _open_text(path) as file:
        first = file.readline().strip()
        if first.startswith("{"):
            return _read_mooncake(path, first, file, seed=seed, until_s=reading.until_s)
        header = [name.strip() for name in first.split(",")]
        if header[: len(_AZURE)] == _AZURE:
            return _build(path, _read_azure(path, file), reading.until_s)
        if header[: len(_OURS)] == _OURS:
            return _build(path, _read_ours(path, file), reading.until_s)
        if header[: len(_SERVEGEN)] == _SERVEGEN:
            curve = RateCurve(_name_of(path), tuple(_read_rates(path, file)), reading.until_s)
            if reading.load_rps is not None:
                curve = curve.scale_to(reading.load_rps)
            return draw_servegen(curve, lengths=reading.lengths, seed=seed)
    formats = " or ".join(",".join(names) for names in (_AZURE, _SERVEGEN, _OURS))
    return _fail(path, 1, first[:60], f"begin with {formats}, or be a JSON object")


def is_rate_curve(path: Path) -> bool:
    """Whether a file holds rates, so that its requests are drawn for the load that is wanted."""
    with _open_text(path) as file:
        return file.readline().split(",")[: len(_SERVEGEN)] == _SERVEGEN


@contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
    """Open a file or a gzipped one, line by line: a trace may be larger than memory."""
    try:
        with path.open("rb") as raw:
            is_gzip = raw.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        opener = gzip.open if is_gzip else open
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield file
    except (OSError, UnicodeDecodeError, EOFError, zlib.error, csv.Error) as exc:
        raise ConfigError(f"{path} must be a readable trace in UTF-8; got: {exc}.") from exc


def _name_of(path: Path) -> str:
    return path.name.removesuffix(".gz").rsplit(".", 1)[0]


def _fail(path: Path, line: int, value: object, rule: str) -> NoReturn:
    raise ConfigError(f"{path}, line {line}: must {rule}; got {value!r}.")


def _build(path: Path, requests: Iterator[TraceRequest], until_s: float | None) -> Traffic:
    """Return the requests before `until_s` as traffic; more than memory can hold is refused."""
    found: list[TraceRequest] = []
    duration_s = 0.0
    for request in requests:
        if until_s is not None and request.arrival_s >= until_s:
            duration_s = until_s
            continue
        found.append(request)
        if len(found) > _REQUESTS_MAX:
            raise ConfigError(
                f"{path} must hold at most {_REQUESTS_MAX} requests; it holds more. "
                "Simulate its beginning: --hours."
            )
    return build_traffic(_name_of(path), found, duration_s)


def _list_rows(path: Path, file: TextIO, columns: int) -> Iterator[tuple[int, list[str]]]:
    for number, row in enumerate(csv.reader(file), start=2):
        if not row:
            continue
        if len(row) < columns:
            _fail(path, number, ",".join(row), f"have {columns} values")
        yield number, row


def _read_count(path: Path, line: int, text: Any, name: str) -> int:
    try:
        count = int(text)
    except (TypeError, ValueError, OverflowError):
        _fail(path, line, text, f"have a whole number as {name}")
    if count < 0:
        _fail(path, line, text, f"have {name} of 0 or more")
    return max(1, count)


def _read_number(path: Path, line: int, text: Any, name: str) -> float:
    try:
        number = float(text)
    except (TypeError, ValueError):
        _fail(path, line, text, f"have a number as {name}")
    if not 0 <= number < float("inf"):
        _fail(path, line, text, f"have {name} of 0 or more")
    return number


def _read_azure(path: Path, file: TextIO) -> Iterator[TraceRequest]:
    first: datetime | None = None
    for number, row in _list_rows(path, file, len(_AZURE)):
        try:
            at = datetime.fromisoformat(row[0].strip())
        except ValueError:
            _fail(path, number, row[0], "have a TIMESTAMP such as 2023-11-16 18:15:46.6805900")
        at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
        first = first or at
        arrival_s = (at - first).total_seconds()
        if arrival_s < 0:
            _fail(path, number, row[0], "not be before the first TIMESTAMP")
        prompt = _read_count(path, number, row[1], "ContextTokens")
        output = _read_count(path, number, row[2], "GeneratedTokens")
        yield TraceRequest(arrival_s, prompt, output)


def _read_mooncake(
    path: Path, first: str, file: TextIO, *, seed: int, until_s: float | None
) -> Traffic:
    rows = list(_list_objects(path, first, file))
    times = [_read_number(path, line, row["timestamp"], "timestamp") * _MS for line, row in rows]
    spread = zip(rows, spread_grid(times, seed=seed), strict=True)
    requests = (
        TraceRequest(
            arrival_s=arrival_s,
            prompt_tokens=_read_count(path, line, row["input_length"], "input_length"),
            output_tokens=_read_count(path, line, row["output_length"], "output_length"),
            blocks=_read_blocks(path, line, row.get("hash_ids", [])),
        )
        for (line, row), arrival_s in spread
    )
    return _build(path, requests, until_s)


def _list_objects(path: Path, first: str, file: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
    number, line = 1, first
    while line:
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                _fail(path, number, line[:60].rstrip(), "be a JSON object")
            missing = [name for name in _MOONCAKE if name not in row]
            if missing:
                _fail(path, number, line[:60].rstrip(), f"have {', '.join(missing)}")
            yield number, row
        number, line = number + 1, file.readline()


def _read_blocks(path: Path, line: int, given: Any) -> tuple[int, ...]:
    if not isinstance(given, list) or not all(isinstance(block, int) for block in given):
        _fail(path, line, given, "have a list of whole numbers as hash_ids")
    return tuple(given)


def _read_rates(path: Path, file: TextIO) -> Iterator[tuple[float, float]]:
    for number, row in _list_rows(path, file, len(_SERVEGEN)):
        start_s = _read_number(path, number, row[0], "t_s")
        yield start_s, _read_number(path, number, row[1], "rate_rps")


def _read_ours(path: Path, file: TextIO) -> Iterator[TraceRequest]:
    for number, row in _list_rows(path, file, len(_OURS)):
        word = row[3].strip().lower() if len(row) > len(_OURS) else "false"
        if word not in {"true", "false"}:
            _fail(path, number, row[3], "have true or false as restricted")
        arrival_s = _read_number(path, number, row[0], "arrival_s")
        if arrival_s > _BEGIN_S_MAX:
            _fail(path, number, row[0], "have arrival_s in seconds from the start of the trace")
        yield TraceRequest(
            arrival_s=arrival_s,
            prompt_tokens=_read_count(path, number, row[1], "prompt_tokens"),
            output_tokens=_read_count(path, number, row[2], "output_tokens"),
            is_restricted=word == "true",
        )
