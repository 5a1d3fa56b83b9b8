"""`tidegate simulate` as a person types it and as a program reads it."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.errors import ConfigError
from infra import simulate_choice
from infra.cli import app
from infra.simulate_choice import PARTS, USUAL_POLICIES, choose_variants
from infra.simulated_files import Choices, read_scenario

# DESIGN's names: other programs read them.
POLICY_KEYS = {
    "name",
    "slo_attainment",
    "ttft_p50_s",
    "ttft_p99_s",
    "tpot_p50_s",
    "cloud_usd",
    "owned_usd",
    "cloud_gpu_hours",
    "completed",
    "rejected",
    "residency_violations",
    "launches",
    "reversals",
    "wall_s",
}


def run(*arguments: str) -> str:
    found = CliRunner().invoke(app, ["simulate", *arguments], catch_exceptions=False)
    assert found.exit_code == 0
    return found.stdout


def read_without_wall_time(text: str) -> dict[str, object]:
    content: dict[str, object] = json.loads(text)
    rows = content["policies"]
    assert isinstance(rows, list)
    for row in rows:
        del row["wall_s"]
        for one in row.get("per_seed", ()):
            del one["wall_s"]
    return content


def test_json_has_the_names_that_other_programs_read() -> None:
    text = run("steady", "--load", "3", "--hours", "0.02", "-o", "json", "--policy", "all")
    content = json.loads(text)
    assert content.keys() >= {"trace", "seed", "requests", "policies"}
    assert content["policies"][0]["name"] == "tidegate"
    for row in content["policies"]:
        assert row.keys() >= POLICY_KEYS
    assert {row["residency_violations"] for row in content["policies"]} == {0}


def test_the_same_command_gives_the_same_figures_and_each_seed_its_own() -> None:
    command = ("bursty", "--load", "4", "--hours", "0.02", "--seeds", "2", "-o", "json")
    command += ("--policy", "tidegate")
    first = read_without_wall_time(run(*command))
    assert first == read_without_wall_time(run(*command))
    rows = first["policies"]
    assert isinstance(rows, list)
    assert len(rows[0]["per_seed"]) == 2
    assert first["seeds"] == [1, 2]


def test_a_trace_of_our_own_format_is_replayed_and_shown_as_a_table(tmp_path: Path) -> None:
    trace = tmp_path / "mine.csv"
    trace.write_text(
        "arrival_s,prompt_tokens,output_tokens,restricted\n0,100,20,true\n1,90,9,false\n"
    )
    text = run(str(trace), "--policy", "tidegate")
    assert "mine: 2 requests" in text
    assert "100.0%" in text


def test_without_a_wish_the_policies_a_buyer_asks_for_are_run() -> None:
    variants = choose_variants(read_scenario(Choices()), [], [], None)
    assert [variant.label for variant in variants] == list(USUAL_POLICIES)


def test_a_policy_whose_library_is_missing_is_left_out_or_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(simulate_choice._NEEDS, "all-cloud", ("no_such_library", "`x`"))
    scenario = read_scenario(Choices())
    labels = [variant.label for variant in choose_variants(scenario, [], [], None)]
    assert labels == [name for name in USUAL_POLICIES if name != "all-cloud"]
    assert "all-cloud is left out: no_such_library isn't installed" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="--policy all-cloud must be left out: no_such_library"):
        choose_variants(scenario, ["all-cloud"], [], None)


def test_a_part_of_the_brain_switched_off_is_a_row_beside_the_whole_one() -> None:
    command = ("steady", "--load", "3", "--hours", "0.01", "-o", "json")
    content = json.loads(run(*command, "--ablate", "forecast", "--ablate", "break-even"))
    names = [row["name"] for row in content["policies"]]
    assert names == ["tidegate", "tidegate -forecast", "tidegate -break-even"]
    variants = choose_variants(read_scenario(Choices()), ["wva"], ["all"], None)
    labels = [variant.label for variant in variants]
    assert labels == ["tidegate", *(f"tidegate -{part}" for part in PARTS), "wva"]


def test_a_part_that_is_switched_off_changes_what_comes_of_it() -> None:
    """A spike of four times the load fills the queue: who is served first decides who is late."""
    command = ("spike", "--load", "22", "--hours", "0.08", "-o", "json")
    content = json.loads(run(*command, "--ablate", "capacity", "--ablate", "in-time"))
    whole, by_slots, by_arrival = content["policies"]
    assert by_slots["cloud_usd"] != whole["cloud_usd"]
    assert by_arrival["slo_attainment"] < whole["slo_attainment"]


BUY = ("--buy", "onprem_a100", "--node-usd", "50000", "--node-usd-per-month", "400")


def test_what_one_more_node_would_have_saved_is_extrapolated_from_both_runs() -> None:
    command = ("steady", "--load", "60", "--hours", "0.05", "-o", "json")
    content = json.loads(run(*command, *BUY))
    before, after = content["policies"]
    assert (before["name"], after["name"]) == ("tidegate", "tidegate +1 onprem_a100")
    assert before["cloud_usd"] > 0
    saved_usd = (before["cloud_usd"] - after["cloud_usd"]) * 7 * 86_400 / content["duration_s"]
    assert content["what_if"]["saved_usd_per_week"] == pytest.approx(saved_usd)


def test_the_answer_to_a_buyer_stands_under_the_table() -> None:
    text = " ".join(run("steady", "--load", "2", "--hours", "0.01", *BUY).split())
    assert "One more onprem_a100 node at $50,000 would never have paid back: it saves no" in text
    assert "Extrapolated: 36 seconds of traffic stand for a week" in text


def test_owned_gpus_are_shown_with_a_cost_where_one_is_given() -> None:
    """Four GPUs for 0.01 h at $2 an hour cost $0.08."""
    command = ("steady", "--load", "2", "--hours", "0.01", "--policy", "onprem-only")
    (row,) = json.loads(run(*command, "--owned-usd-per-gpu-hour", "2", "-o", "json"))["policies"]
    assert row["owned_usd"] == pytest.approx(0.08, rel=0.01)


def test_a_trace_near_the_wanted_load_is_still_brought_to_it(tmp_path: Path) -> None:
    """600 requests in 600 s are 1 a second; 1.08 a second are 648, with a spread of 7."""
    trace = tmp_path / "near.csv"
    rows = "".join(f"{second},10,5\n" for second in range(601))
    trace.write_text(f"arrival_s,prompt_tokens,output_tokens\n{rows}")
    command = (str(trace), "--load", "1.08", "--policy", "onprem-only", "-o", "json")
    assert json.loads(run(*command))["requests"] == pytest.approx(648, abs=4 * 7)


def test_an_interrupted_run_prints_what_is_finished_and_no_traceback() -> None:
    """Ctrl-C while the second run or a later one is under way: exit code 130, as shells have it."""
    # Where the tests run in the background, SIGINT is ignored from the start.
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    program += "from infra.cli import main; main()"
    command = [sys.executable, "-c", program, "simulate", "steady", "--load", "20"]
    command += ["--hours", "0.1", "--seeds", "100", "--policy", "onprem-only"]
    command += ["-o", "json"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    ) as process:
        assert process.stderr is not None
        while line := process.stderr.readline():
            if re.search(r"run ([2-9]|\d\d) of 100", line):
                break
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
    assert process.returncode == 130
    content = json.loads(out)
    assert content["interrupted"] is True
    assert content["policies"][0]["name"] == "onprem-only"
    assert "Traceback" not in error
    assert "interrupted" in error


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("nothing.csv",), r"TRACE must be a file or one of steady, .*; got 'nothing.csv'"),
        (("steady", "--load", "2", "--rescale", "2"), "must not be given together"),
        (("steady", "--gpu", "l40s"), "--gpu must be ACCELERATOR=ROW"),
        (("steady", "--gpu", "l40s=b200"), "there is no 'b200'. Say which: --gpu l40s=ROW"),
        (("steady", "--model", "x"), "--model must be one of llama-3.1-8b; got 'x'"),
        (("steady", "--restricted", "2"), "must be a share from 0 to 1; got 2"),
        (("steady", "--load", "0"), "--load must be above 0; got 0"),
        (("steady", "--hours", "-1"), "--hours must be above 0; got -1"),
        (("steady", "--policy", "best"), "--policy must be one of tidegate, .*, all; got 'best'"),
        (("steady", "--ablate", "x"), "--ablate must be one of forecast, .*, all; got 'x'"),
        (("steady", "--buy", "onprem_a100"), "price above 0: --node-usd PRICE"),
        (("steady", "--node-usd", "5"), "must come with the node's type: --buy NODE_TYPE"),
        (("steady", "--buy", "x", "--node-usd", "5"), "--buy must be one of onprem_a100; got 'x'"),
        (("steady", "--report", "no/such/r.html"), "--report must be a file in a folder that is"),
    ],
)
def test_a_mistake_is_named_with_its_value_and_what_to_type(
    arguments: tuple[str, ...], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        CliRunner().invoke(app, ["simulate", *arguments], catch_exceptions=False)
