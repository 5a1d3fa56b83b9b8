"""How many requests the simulator takes in a minute on one core, with production routing.

    python tests/benchmarks/simulator_speed.py [--requests 30000] [--repeats 3]

The same traffic each time: steady, through the shipped scenario with production brain, admission,
routing, residency, placement and guard. Prints wall time and processor time, the median and the
span, and the machine. The target, 300,000 a minute of wall time, is printed beside the figure and
not enforced: how busy the machine is decides too much.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from pathlib import Path

from autoscaling.peers.registry import run_policy
from autoscaling.simulator.generators import Shape, generate
from infra.simulated_files import Choices, read_scenario

TARGET_PER_MIN = 300_000
RATES_RPS = (10.0, 25.0, 40.0)


def describe_machine() -> str:
    """Return what the figures were taken on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if "model name" in line), "?")
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"{os.cpu_count()} x {model}, Python {platform.python_version()}, load {load}"


def say_rate(spent_s: list[float], requests: int) -> str:
    """Return requests a minute: the median and the span."""
    rates = sorted(60 * requests / one for one in spent_s)
    return f"{statistics.median(rates):>9,.0f} ({rates[0]:,.0f}..{rates[-1]:,.0f})"


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=30_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    scenario = read_scenario(Choices())
    lines = [f"machine: {describe_machine()}", f"target: {TARGET_PER_MIN:,} requests a minute"]
    for rps in RATES_RPS:
        shape = Shape(mean_rps=rps, duration_s=options.requests / rps)
        traffic = generate("steady", shape, seed=1)
        wall: list[float] = []
        processor: list[float] = []
        for _ in range(options.repeats):
            began_s, began_cpu_s = time.perf_counter(), time.process_time()
            found = run_policy("tidegate", traffic, scenario, seed=1)
            wall.append(time.perf_counter() - began_s)
            processor.append(time.process_time() - began_cpu_s)
        count = len(traffic.requests)
        lines += [
            f"{rps:g} a second, {count} requests, {found.slo_attainment:.1%} within the SLO",
            f"  a minute of wall time:      {say_rate(wall, count)}",
            f"  a minute of processor time: {say_rate(processor, count)}",
        ]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
