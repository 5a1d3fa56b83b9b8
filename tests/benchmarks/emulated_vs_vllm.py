"""The emulated engine and the simulator's engine model against real vLLM, after a calibration.

    python tests/benchmarks/emulated_vs_vllm.py [--minutes 2] [--load 0.5] [--seed 1] [-o FILE]
    python tests/benchmarks/emulated_vs_vllm.py --url URL --credential-env NAME --model MODEL …

Starts one vLLM replica with SmolLM2-135M on this machine's processors, as production starts it,
or takes one that runs (--url: any OpenAI-compatible server, such as a vLLM on your own GPU).
Measures time to first token over prompt lengths and time per token over closed loops of 1 to 8
clients, lays lines through the medians and prints the row of the GPU table that follows. Then
replays one seeded trace, open loop at a part of what the row says the replica sustains, against
vLLM and against the emulated engine with that row, and runs it through the engine model. What is
fitted is the row; nothing is fitted to the trace.

Prints figures and differences; there is no bound to meet, so it ends with 0 if all were answered.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from autoscaling.simulator.engine_model import CHUNK_TOKENS
from autoscaling.simulator.traffic import Traffic
from deployments.continuous_batching import Performance
from deployments.gpu_performance import PerformanceRow
from infra.progress import console, step
from tests.benchmarks.reality.calibration import Measured, calibrate
from tests.benchmarks.reality.engine_client import Door, EngineClient
from tests.benchmarks.reality.engines import (
    CONTEXT_TOKENS,
    MODEL,
    SLOTS,
    open_emulated,
    open_vllm,
    replay_model,
)
from tests.benchmarks.reality.figures import Bound, find_tpot, find_ttft, judge
from tests.benchmarks.reality.fit import Fit
from tests.benchmarks.reality.replay import Answer, list_errors, replay
from tests.benchmarks.reality.workload import Load, build_load
from tests.benchmarks.simulator_speed import describe_machine

_PROMPT_TOKENS = (64, 256)
_OUTPUT_TOKENS = (32, 96)
# Differences are stated, not judged: a bound that nothing can miss.
_FIGURES = tuple(
    Bound(name, "ratio", float("inf"))
    for name in ("ttft_p50_s", "ttft_p90_s", "tpot_p50_s", "tpot_p90_s", "output_tokens_per_s")
)


def estimate_rps(performance: Performance, *, slots: int) -> float:
    """Return the requests a second that a replica sustains, at the trace's mean lengths."""
    prompt = sum(_PROMPT_TOKENS) / 2
    output = sum(_OUTPUT_TOKENS) / 2
    prefill_s = performance.prefill_base_s + performance.prefill_per_token_s * prompt
    return 1 / max(prefill_s, (prefill_s + output * performance.tpot_s(slots)) / slots)


def measure(answers: Sequence[Answer]) -> dict[str, float | None]:
    """Return what is compared; throughput is over the time from first arrival to last end."""
    ends = [answer.ended_s for answer in answers if answer.is_complete]
    spent_s = max(ends, default=0.0) - min((answer.sent_s for answer in answers), default=0.0)
    tokens = sum(answer.output_tokens for answer in answers if answer.is_complete)
    return {
        "ttft_p50_s": find_ttft(answers, 50),
        "ttft_p90_s": find_ttft(answers, 90),
        "tpot_p50_s": find_tpot(answers, 50),
        "tpot_p90_s": find_tpot(answers, 90),
        "output_tokens_per_s": tokens / spent_s if spent_s > 0 else None,
    }


async def run_trace(door: Door, traffic: Traffic, *, seed: int) -> list[Answer]:
    """Return the answers of one engine behind HTTP."""
    client = EngineClient(door, seed=seed)
    try:
        answers, lag_s = await replay(traffic, client.as_sender(), say=console.print)
    finally:
        await client.close()
    console.print(f"sent at most {lag_s:.2f} s late")
    return answers


def measure_engine(
    door: Door, options: argparse.Namespace
) -> tuple[Measured, PerformanceRow, Traffic, list[Answer]]:
    """Return the calibration, its row, the trace made for it and the engine's answers to it."""
    measured, kv_tokens = asyncio.run(_calibrate(door, options))
    row = make_row(measured.fit(), kv_tokens=kv_tokens, what=options.what)
    rps = options.load * estimate_rps(row.to_performance(), slots=SLOTS)
    load = Load(rps, 60 * options.minutes, _PROMPT_TOKENS, _OUTPUT_TOKENS)
    traffic = build_load("even", load, seed=options.seed)
    with step(f"Trace against the engine: {len(traffic.requests)} requests at {rps:.2f} a second"):
        return measured, row, traffic, asyncio.run(run_trace(door, traffic, seed=options.seed))


async def _calibrate(door: Door, options: argparse.Namespace) -> tuple[Measured, int | None]:
    client = EngineClient(door, seed=-options.seed)
    try:
        measured = await calibrate(client, level_s=options.level_s, say=console.print)
        return measured, await client.find_kv_tokens()
    finally:
        await client.close()


def make_row(fit: Fit, *, kv_tokens: int | None, what: str) -> PerformanceRow:
    """Return the table's row; an engine that doesn't tell its KV memory gets one full batch's."""
    source = f"tests/benchmarks/emulated_vs_vllm.py: {what}; {describe_machine()}"
    capacity = kv_tokens or SLOTS * CONTEXT_TOKENS
    return fit.to_row(gpus=1, kv_capacity_tokens=capacity, source=source)


def compare(
    row: PerformanceRow, traffic: Traffic, real: Sequence[Answer], *, seed: int
) -> dict[str, Any]:
    """Return the figures of all engines and each one's differences from the real one."""
    performance = row.to_performance()
    with (
        open_emulated(performance) as door,
        step("The same trace against the emulated engine"),
    ):
        emulated = asyncio.run(run_trace(door, traffic, seed=seed))
    alone = row.to_decode_performance()
    found = {
        "vllm": measure(real),
        "emulated": measure(emulated),
        "model": measure(replay_model(traffic, alone, chunk_tokens=CHUNK_TOKENS)),
        "model, no interference": measure(replay_model(traffic, performance, chunk_tokens=None)),
    }
    differences = {
        name: {v.bound.figure: v.difference for v in judge(found["vllm"], figures, _FIGURES)}
        for name, figures in found.items()
        if name != "vllm"
    }
    return {
        "figures": found,
        "differences_percent": differences,
        "errors": {"vllm": list_errors(real), "emulated": list_errors(emulated)},
    }


def render(content: dict[str, Any]) -> str:
    """Return the figures as text."""
    names = list(content["figures"])
    lines = [
        f"machine: {content['machine']}",
        _render_line("TTFT", content["fit"]["prefill"], "prompt token"),
        _render_line("TPOT", content["fit"]["pace"], "running request"),
        "row for deployments/gpu_performance.yaml:",
        yaml.safe_dump({content["row_name"]: content["row"]}, sort_keys=False, width=100),
        f"trace: {content['requests']} requests, {content['rps']:.2f} a second",
        f"{'':>20}" + "".join(f"{name:>26}" for name in names),
    ]
    for bound in _FIGURES:
        cells = [_render_cell(content, name, bound.figure) for name in names]
        lines.append(f"{bound.figure:>20}" + "".join(f"{cell:>26}" for cell in cells))
    lines += [f"{name}: {error}" for name, errors in content["errors"].items() for error in errors]
    return "\n".join(lines)


def _render_line(name: str, line: dict[str, float], unit: str) -> str:
    base, slope = (1e3 * line[part] for part in ("base", "slope"))
    missed = f"points miss it by {100 * line['missed']:.0f} %"
    return f"{name}: {base:.1f} ms + {slope:.3f} ms a {unit} ({missed})"


def _render_cell(content: dict[str, Any], name: str, figure: str) -> str:
    value = content["figures"][name][figure]
    if value is None:
        return "-"
    difference = content["differences_percent"].get(name, {}).get(figure)
    return f"{value:.3f}" if difference is None else f"{value:.3f} ({difference:+.0f} %)"


@contextlib.contextmanager
def open_engine(options: argparse.Namespace) -> Iterator[Door]:
    """Give the engine that is named, or start one; end what was started."""
    if options.url:
        credential = os.environ.get(options.credential_env, "")
        yield Door(options.url.rstrip("/"), credential, options.model)
        return
    with step("vLLM replica: start"), contextlib.ExitStack() as stack:
        door = stack.enter_context(open_vllm())
        kept = stack.pop_all()
    with kept:
        yield door


def read_options() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=2.0, help="of the trace")
    parser.add_argument("--load", type=float, default=0.5, help="part of what the row sustains")
    parser.add_argument("--level-s", type=float, default=20.0, help="of each closed loop")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--url", help="an engine that runs; its /v1 is left out")
    parser.add_argument("--credential-env", default="OPENAI_API_KEY", help="variable with its key")
    parser.add_argument("--model", default=MODEL, help="what that engine calls its model")
    parser.add_argument("--what", default="vLLM, SmolLM2-135M float32 on CPU, 8 slots")
    parser.add_argument("--row-name", default="cpu-smollm2-135m")
    parser.add_argument("-o", dest="file", type=Path, help="also write everything as JSON")
    return parser.parse_args()


def main() -> int:
    """Print row and figures; return 0 if every request was answered."""
    options = read_options()
    machine = describe_machine()
    with open_engine(options) as door:
        measured, row, traffic, real = measure_engine(door, options)
    fit = measured.fit()
    compared = compare(row, traffic, real, seed=options.seed)
    content = {
        "machine": machine,
        "row_name": options.row_name,
        "row": row.model_dump(),
        "fit": dataclasses.asdict(fit),
        "points": dataclasses.asdict(measured),
        "requests": len(traffic.requests),
        "rps": traffic.mean_rps,
        **compared,
    }
    sys.stdout.write(f"{render(content)}\n")
    if options.file is not None:
        options.file.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return 1 if any(content["errors"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
