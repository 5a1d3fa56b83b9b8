import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from autoscaling.metrics import METRICS
from infra.cli import app
from infra.prometheus import AUTOSCALER_JOB
from infra.rules import Thresholds, build_rules, render_rules

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool (Debian's prometheus) isn't installed"
)

RULES = {rule.name: rule for rule in build_rules(Thresholds())}

# What a minute brings is one value: "0x10" is zero for ten minutes, "1x30" one for thirty.
CASES: dict[str, tuple[dict[str, str], dict[str, str], int]] = {
    # name: (series, labels of the one alert, minute at which it is asked)
    "TidegateHeadDown": ({f'up{{job="{AUTOSCALER_JOB}"}}': "0x20"}, {}, 5),
    "TidegateAutoscalerStuck": ({"tidegate_decision_age_seconds": "100x20"}, {}, 5),
    "TidegateSourceUnreadable": (
        {'tidegate_source_readable{source="ledger"}': "0x20"},
        {"source": "ledger"},
        5,
    ),
    "TidegateNoOwnedCapacity": (
        {
            'tidegate_pool_slots{app="llama", market="owned"}': "0x20",
            'tidegate_model_waiting{app="llama", data_class="public"}': "4x20",
        },
        {"app": "llama"},
        5,
    ),
    "TidegateBudgetHard": (
        {
            'tidegate_limit_state{limit="usd_per_hour", state="hard"}': "1x20",
            'tidegate_limit_state{limit="usd_per_day", state="hard"}': "0x20",
            'tidegate_limit_usd{limit="usd_per_hour"}': "4x20",
            'tidegate_limit_usd{limit="usd_per_day"}': "40x20",
        },
        {"limit": "usd_per_hour"},
        1,
    ),
    "TidegateBudgetSoft": (
        {'tidegate_limit_state{limit="usd_per_day", state="soft"}': "1x20"},
        {"limit": "usd_per_day"},
        1,
    ),
    "TidegateBurstTooLong": (
        {
            'tidegate_burst_state{state="closed"}': "0x200",
            'tidegate_burst_state{state="opening"}': "1x5 0x195",
            'tidegate_burst_state{state="open"}': "0x5 1x195",
        },
        {},
        125,
    ),
    "TidegatePriceUnknown": (
        {'tidegate_nodes_price_unknown{site="aws"}': "1x20"},
        {"site": "aws"},
        5,
    ),
    "TidegateCredentialsRefused": (
        {
            'tidegate_credentials_refused{site="aws-1"}': "1x20",
            'tidegate_credentials_refused{site="aws-2"}': "1x20",
            'tidegate_credentials_refused{site="aws-3"}': "1x20",
            'tidegate_listing_failed{site="aws-3"}': "1x20",
            'tidegate_listing_age_seconds{site="aws-1"}': "600x20",
            'tidegate_listing_age_seconds{site="aws-2"}': "600x20",
        },
        {},
        5,
    ),
    "TidegateListingStale": (
        {'tidegate_listing_age_seconds{site="aws"}': "600x20"},
        {"site": "aws"},
        5,
    ),
    "TidegateNeverListed": (
        {'tidegate_listing_failed{site="aws"}': "1x20"},
        {"site": "aws"},
        5,
    ),
    "TidegateCapacityErrors": (
        {'tidegate_holds{site="aws"}': "1x20"},
        {"site": "aws"},
        8,
    ),
    "TidegateInstanceLeaked": (
        {'tidegate_phase_age_seconds{site="aws", phase="terminating"}': "1500x20"},
        {"site": "aws"},
        5,
    ),
}

QUIET: dict[str, str] = {
    f'up{{job="{AUTOSCALER_JOB}"}}': "1x200",
    "tidegate_decision_age_seconds": "1x200",
    'tidegate_source_readable{source="ledger"}': "1x200",
    'tidegate_pool_slots{app="llama", market="owned"}': "8x200",
    'tidegate_pool_slots{app="idle", market="owned"}': "0x200",
    'tidegate_model_waiting{app="llama", data_class="public"}': "4x200",
    'tidegate_model_waiting{app="idle", data_class="public"}': "0x200",
    'tidegate_limit_state{limit="usd_per_hour", state="hard"}': "0x200",
    'tidegate_limit_state{limit="usd_per_hour", state="soft"}': "0x200",
    'tidegate_burst_state{state="closed"}': "0x100 1x100",
    'tidegate_burst_state{state="open"}': "1x100 0x100",
    'tidegate_nodes_price_unknown{site="aws"}': "0x200",
    'tidegate_credentials_refused{site="aws"}': "0x200",
    'tidegate_listing_age_seconds{site="aws"}': "5x200",
    # Failing just now, and for a short time only.
    'tidegate_listing_failed{site="aws"}': "1x200",
    # All nodes are owned, and nothing may ever be spent: nobody must be called for that.
    'tidegate_limit_usd{limit="usd_per_day"}': "0x200",
    'tidegate_limit_state{limit="usd_per_day", state="hard"}': "1x200",
    'tidegate_holds{site="aws"}': "0x200",
    'tidegate_launch_failures_total{site="aws", node_type="t", code="no_capacity"}': "3x200",
    'tidegate_phase_age_seconds{site="aws", phase="terminating"}': "60x200",
    'tidegate_phase_age_seconds{site="aws", phase="running"}': "90000x200",
    'tidegate_nodes{site="aws", market="spot", phase="running"}': "2x200",
}


def expect(name: str, labels: dict[str, str]) -> dict[str, Any]:
    rule = RULES[name]
    said = {"summary": rule.summary, "action": rule.action}
    for key, value in (*labels.items(),):
        said = {
            part: text.replace(f"{{{{ $labels.{key} }}}}", value) for part, text in said.items()
        }
    said = {p: t.replace("{{ $value | humanizeDuration }}", "10m 0s") for p, t in said.items()}
    return {"exp_labels": {"severity": rule.severity, **labels}, "exp_annotations": said}


def run_tests(folder: Path, series: dict[str, str], checks: list[dict[str, Any]]) -> None:
    (folder / "rules.yml").write_text(render_rules(build_rules(Thresholds())))
    inputs = [{"series": name, "values": values} for name, values in series.items()]
    content = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": inputs, "alert_rule_test": checks}],
    }
    (folder / "test.yml").write_text(yaml.safe_dump(content))
    done = subprocess.run(
        ["promtool", "test", "rules", "test.yml"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_rule_has_a_case_that_fires_it() -> None:
    assert CASES.keys() == RULES.keys()


@needs_promtool
@pytest.mark.parametrize("name", CASES)
def test_a_rule_fires_once_for_its_cause_and_says_what_to_do(tmp_path: Path, name: str) -> None:
    series, labels, minute = CASES[name]
    alert = {"eval_time": f"{minute}m", "alertname": name, "exp_alerts": [expect(name, labels)]}
    run_tests(tmp_path, series, [alert])


@needs_promtool
def test_no_rule_fires_while_all_is_well(tmp_path: Path) -> None:
    checks = [
        {"eval_time": f"{minute}m", "alertname": name, "exp_alerts": []}
        for name in RULES
        for minute in (20, 99, 150)
    ]
    run_tests(tmp_path, QUIET, checks)


@needs_promtool
def test_refused_credentials_give_exactly_one_alert_of_any_kind(tmp_path: Path) -> None:
    """Two sites with one expired role: their stale listings and failures don't add to the alert."""
    series = QUIET | CASES["TidegateCredentialsRefused"][0]
    del series['tidegate_credentials_refused{site="aws"}']
    checks = [
        {
            "eval_time": "10m",
            "alertname": name,
            "exp_alerts": [expect(name, {})] if name == "TidegateCredentialsRefused" else [],
        }
        for name in RULES
    ]
    run_tests(tmp_path, series, checks)


@needs_promtool
def test_prometheus_accepts_the_rules(tmp_path: Path) -> None:
    file = tmp_path / "rules.yml"
    file.write_text(render_rules(build_rules(Thresholds())))
    command = ["promtool", "check", "rules", "--lint=all", "--lint-fatal", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_ask_only_for_metrics_that_exist() -> None:
    known = {metric.name for metric in METRICS}
    for rule in RULES.values():
        names = set(re.findall(r"tidegate_\w+", rule.expr))
        assert names <= known, (rule.name, names - known)


def test_actions_name_commands_that_exist() -> None:
    actions = " ".join(rule.action for rule in RULES.values())
    typed = re.findall(r"tidegate ([a-z ]+)", actions)
    assert typed
    for words in typed:
        command: Any = typer.main.get_command(app)
        for word in words.split():
            command = getattr(command, "commands", {}).get(word)
            assert command is not None, f"tidegate {words}"


def test_thresholds_are_those_given() -> None:
    text = json.dumps([rule.expr for rule in build_rules(Thresholds(listing_age_s_max=77))])
    assert "> 77" in text
