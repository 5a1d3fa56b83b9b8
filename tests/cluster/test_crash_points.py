"""The provider ends at every step of a launch, a termination and an adoption, and starts again.

Steps are found, not listed: each run crashes one step later, until a run gets to its end. EC2 is
moto behind the fault proxy, which gives one instance for each token as EC2 does. After each crash
a new process looks at the site until all is settled; then what the ledger says and what EC2 says
must agree: nothing runs that nobody knows, nothing was launched twice, and money is counted once.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from cluster.ledger import Ledger
from cluster.model import NodePhase
from tests.cluster.aws_rig import PORTS, Ec2Rig
from tests.cluster.crash_child import CRASHED

PRICE = Decimal("1.5")
# EC2 gives times in whole seconds; ends are noted when the next process sees them. It charges a
# minute at least.
TOLERANCE_S = 10.0
_STEPS_MAX = 100


@dataclass
class Zygote:
    """A process that does orders in forks of itself."""

    process: subprocess.Popen[str]
    errors: Path

    def obey(self, **order: Any) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        code = int(self.process.stdout.readline())
        assert code in {0, CRASHED}, self.errors.read_text()
        return code


@pytest.fixture
def zygote(ec2: Ec2Rig, tmp_path: Path) -> Iterator[Zygote]:
    errors = tmp_path / "errors"
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.crash_child"],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        yield Zygote(process, errors)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 0


@dataclass
class CrashRun:
    """One scenario with its crash at one step, in a cluster of its own."""

    scenario: str
    crash_at: int
    ec2: Ec2Rig
    zygote: Zygote
    provider_config: dict[str, Any]

    @property
    def cluster(self) -> str:
        return f"{self.scenario}-{self.crash_at}"

    @property
    def folder(self) -> Path:
        return self.ec2.folder / self.cluster

    def run(self) -> bool:
        """Crash, start again and converge; returns whether the crash came at all."""
        self.folder.mkdir()
        has_crashed = self._order(self.scenario, crash_at=self.crash_at) == CRASHED
        assert self._order("converge", crash_at=None) == 0
        return has_crashed

    def steps(self) -> list[str]:
        return (self.folder / "steps").read_text().splitlines()

    def _order(self, scenario: str, *, crash_at: int | None) -> int:
        provider = {**self.provider_config, "state_dir": str(self.folder), "_role": "head"}
        return self.zygote.obey(
            scenario=scenario,
            crash_at=crash_at,
            cluster=self.cluster,
            folder=str(self.folder),
            provider=provider,
        )

    def check(self) -> None:
        """Compare the ledger with EC2."""
        ledger = Ledger(self.folder / self.cluster / "ledger.db", reads_only=True)
        told = f"crash at step {self.crash_at} of {self.scenario}, {self.steps()[-1:]}"
        instances = self._list_instances()
        by_node = [_tag(one, "tidegate-node") for one in instances]
        assert len(by_node) == len(set(by_node)), f"launched twice for one intent: {told}"
        live = {_tag(one, "tidegate-node") for one in instances if not _is_gone(one)}
        open_nodes = {one.node_id: one.phase for one in ledger.list_open()}
        assert set(open_nodes) == live, f"leaked or lost: {told}"
        assert set(open_nodes.values()) <= {NodePhase.RUNNING}, told
        self._check_money(ledger, instances, told)

    def _check_money(self, ledger: Ledger, instances: list[dict[str, Any]], told: str) -> None:
        now_s = ledger.spend_now().now_s
        ran_s = [_charged_s(one, now_s) for one in instances]
        expected, got = PRICE * Decimal(sum(ran_s)) / 3600, ledger.accrued_usd(0.0, now_s + 60)
        assert got is not None, told
        tolerance = PRICE * len(instances) * Decimal(TOLERANCE_S) / 3600
        assert abs(got - expected) <= tolerance, f"{got} $ for {expected} $: {told}"
        began = {_tag(one, "tidegate-node"): one["LaunchTime"].timestamp() for one in instances}
        for record in ledger.list_all():
            if record.launched_s is not None:
                assert abs(record.launched_s - began[record.node_id]) <= 1, told

    def _list_instances(self) -> list[dict[str, Any]]:
        """Return every instance EC2 ever started for this cluster."""
        answer = self.ec2.direct.describe_instances(
            Filters=[{"Name": "tag:tidegate-cluster", "Values": [self.cluster]}]
        )
        return [one for group in answer["Reservations"] for one in group["Instances"]]


def _tag(instance: dict[str, Any], name: str) -> str:
    return next(pair["Value"] for pair in instance["Tags"] if pair["Key"] == name)


def _is_gone(instance: dict[str, Any]) -> bool:
    return instance["State"]["Name"] in {"shutting-down", "terminated"}


def _charged_s(instance: dict[str, Any], now_s: float) -> float:
    """Return for how long EC2 charges; those here end within their first minute, charged whole."""
    return 60.0 if _is_gone(instance) else now_s - instance["LaunchTime"].timestamp()


@pytest.mark.parametrize(
    ("scenario", "steps_min"), [("launch", 20), ("terminate", 9), ("adopt", 8)]
)
def test_a_crash_at_any_step_leaks_nothing_launches_nothing_twice_and_counts_money_once(
    ec2: Ec2Rig, zygote: Zygote, cluster_content: dict[str, Any], scenario: str, steps_min: int
) -> None:
    provider = cluster_content["provider"]
    provider["sites"]["cloud"]["backend"] = ec2.settings.model_dump(mode="json")
    provider["ports"] = PORTS.model_dump()
    for crash_at in range(1, _STEPS_MAX):
        run = CrashRun(scenario, crash_at, ec2, zygote, provider)
        has_crashed = run.run()
        run.check()
        if not has_crashed:
            break
    assert crash_at > steps_min, f"{scenario} has only {crash_at - 1} steps: {run.steps()}"
    assert "before RunInstances" in run.steps() or scenario != "launch"
