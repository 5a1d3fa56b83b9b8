"""`tidegate simulate` as a person types it and as a program reads it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.errors import ConfigError
from infra.cli import app

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
    text = run(str(trace))
    assert "mine: 2 requests" in text
    assert "100.0%" in text


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("nothing.csv",), r"TRACE must be a file or one of steady, .*; got 'nothing.csv'"),
        (("steady", "--load", "2", "--rescale", "2"), "must not be given together"),
        (("steady", "--gpu", "l40s"), "--gpu must be ACCELERATOR=ROW"),
        (("steady", "--gpu", "l40s=b200"), "there is no 'b200'. Say which: --gpu l40s=ROW"),
        (("steady", "--model", "x"), "--model must be one of llama-3.1-8b; got 'x'"),
        (("steady", "--restricted", "2"), "must be a share from 0 to 1; got 2"),
    ],
)
def test_a_mistake_is_named_with_its_value_and_what_to_type(
    arguments: tuple[str, ...], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        CliRunner().invoke(app, ["simulate", *arguments], catch_exceptions=False)
