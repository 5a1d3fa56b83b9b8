"""Each format is read as documented, and what is wrong is named with file, line, value and rule."""

import gzip
import json
import re
import tarfile
from pathlib import Path

import pytest

from autoscaling.simulator.generators import GENERATORS, Shape, generate
from autoscaling.simulator.traces import RateReading, read_trace
from autoscaling.simulator.traffic import build_traffic, mark_restricted, rescale_traffic
from cluster.errors import ConfigError


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_azure_times_with_seven_decimals_count_from_the_first(tmp_path: Path) -> None:
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"
    text += "2023-11-16 18:15:50.9951690,396,109\n"
    path = tmp_path / "azure.csv.gz"
    path.write_bytes(gzip.compress(text.encode()))
    traffic = read_trace(path, seed=1)
    assert [r.prompt_tokens for r in traffic.requests] == [374, 396]
    assert traffic.requests[1].arrival_s == pytest.approx(4.314579, abs=1e-5)
    assert traffic.name == "azure"


def test_mooncake_batches_are_spread_over_their_grid_and_keep_their_blocks(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 3000 * (n // 10), "input_length": 600, "output_length": 5, "hash_ids": [0, n]}
        for n in range(30)
    ]
    path = write(tmp_path, "m.jsonl", "\n".join(json.dumps(row) for row in rows))
    found = read_trace(path, seed=1).requests
    assert len({request.arrival_s for request in found}) == 30
    assert all(3 * (i // 10) <= r.arrival_s < 3 * (i // 10) + 3 for i, r in enumerate(found))
    assert sorted(request.blocks for request in found) == [(0, n) for n in range(30)]
    assert found == read_trace(path, seed=1).requests
    assert found != read_trace(path, seed=2).requests


def test_a_rate_curve_is_brought_to_the_load_and_zero_bins_are_filled(tmp_path: Path) -> None:
    """Rates 1000, none, 3000: the missing one is their mean, 2000; at 2 a second: 1, 2, 3."""
    path = write(tmp_path, "r.csv", "t_s,rate_rps\n0,1000\n600,0\n1200,3000\n")
    dataset = {"0": {"input_tokens": "{100: 1.0}", "output_tokens": "{7: 0.5, 9: 0.5}"}}
    write(tmp_path, "chunk-0-dataset.json", json.dumps(dataset))
    with tarfile.open(tmp_path / "pdfs.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "chunk-0-dataset.json", arcname="chunk-0-dataset.json")
    reading = RateReading(lengths=tmp_path / "pdfs.tar.gz", load_rps=2.0)
    found = read_trace(path, seed=1, rates=reading).requests
    counts = [sum(600 * b <= r.arrival_s < 600 * (b + 1) for r in found) for b in range(3)]
    assert counts == pytest.approx([600, 1200, 1800], rel=0.1)
    assert {r.prompt_tokens for r in found} == {100}
    assert {r.output_tokens for r in found} == {7, 9}


def test_a_rate_curve_cut_inside_its_first_bin_still_has_the_load(tmp_path: Path) -> None:
    """At 5 a second, 300 s of a bin of 600 s hold 1,500 requests; chance moves that by 39."""
    path = write(tmp_path, "r.csv", "t_s,rate_rps\n600,1000\n1200,3000\n")
    traffic = read_trace(path, seed=1, rates=RateReading(load_rps=5.0, until_s=300.0))
    assert traffic.duration_s == 300
    assert len(traffic.requests) == pytest.approx(1500, abs=4 * 39)


def test_only_the_beginning_of_a_trace_is_kept(tmp_path: Path) -> None:
    text = "arrival_s,prompt_tokens,output_tokens\n0,1,1\n5,1,1\n90,1,1\n"
    path = write(tmp_path, "ours.csv", text)
    traffic = read_trace(path, seed=1, rates=RateReading(until_s=60.0))
    assert [request.arrival_s for request in traffic.requests] == [0, 5]
    assert traffic.duration_s == 60


def test_azure_times_with_an_offset_and_without_decimals_are_read(tmp_path: Path) -> None:
    text = "\ufeffTIMESTAMP,ContextTokens,GeneratedTokens\r\n2024-05-10 00:00:00+00:00,3,4\r\n"
    path = write(tmp_path, "azure.csv", text + "2024-05-10 00:00:02.009930+00:00,3,4\r\n\r\n")
    found = read_trace(path, seed=1).requests
    assert [request.arrival_s for request in found] == pytest.approx([0, 2.00993])


@pytest.mark.parametrize("damage", [slice(None, -9), slice(None, 30)])
def test_a_damaged_archive_is_named(tmp_path: Path, damage: slice) -> None:
    path = tmp_path / "t.csv.gz"
    text = "arrival_s,prompt_tokens,output_tokens\n" + "1,2,3\n" * 9999
    path.write_bytes(gzip.compress(text.encode())[damage])
    with pytest.raises(ConfigError, match=r"t\.csv\.gz must be a readable trace in UTF-8"):
        read_trace(path, seed=1)


def test_our_own_format_says_which_requests_are_restricted(tmp_path: Path) -> None:
    text = "arrival_s,prompt_tokens,output_tokens,restricted\n0.5,10,20,true\n1.5,11,21,false\n"
    found = read_trace(write(tmp_path, "ours.csv", text), seed=1).requests
    assert [request.is_restricted for request in found] == [True, False]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a,b\n1,2\n", "line 1: must begin with TIMESTAMP,.* or be a JSON object; got 'a,b'"),
        (
            "arrival_s,prompt_tokens,output_tokens\n0,1,2\n1,x,2\n",
            "line 3: .*prompt_tokens; got 'x'",
        ),
        ("arrival_s,prompt_tokens,output_tokens\n0,1\n", "line 2: must have 3 values; got '0,1'"),
        ("arrival_s,prompt_tokens,output_tokens\n-1,1,2\n", "line 2: .*arrival_s of 0 or more"),
        ("arrival_s,prompt_tokens,output_tokens\nnan,1,2\n", "line 2: .*arrival_s of 0 or more"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,2\n", "line 2: .*TIMESTAMP such as"),
        ('{"timestamp": 0}\n', "line 1: must have input_length, output_length"),
        ('{"timestamp": 0, "input_length": 1, "output_length": 1}\n5\n', "line 2: .*JSON object"),
        ('{"timestamp": null, "input_length": 1, "output_length": 1}\n', "line 1: .*timestamp"),
        (
            '{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": 7}\n',
            "line 1: must have a list of whole numbers as hash_ids; got 7",
        ),
        (
            "arrival_s,prompt_tokens,output_tokens\n1700000000,1,2\n",
            "line 2: .*seconds from the start of the trace; got '1700000000'",
        ),
        ("t_s,rate_rps\n600,1\n0,1\n", "in order of time; got t_s 0 after 600"),
        ("t_s,rate_rps\n0,0\n600,0\n", "at least two bins and a rate above 0"),
        ("t_s,rate_rps\n0,9000\n600,9000\n", "give --load"),
    ],
)
def test_a_wrong_line_is_named_with_its_value_and_the_rule(
    tmp_path: Path, text: str, complaint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_trace(write(tmp_path, "t.csv", text), seed=1)
    assert re.search(complaint, str(caught.value))


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_a_generator_keeps_its_mean_and_its_seed(name: str) -> None:
    shape = Shape(mean_rps=5.0, duration_s=7200.0)
    traffic = generate(name, shape, seed=3)
    assert traffic.mean_rps == pytest.approx(5.0, rel=0.25)
    assert traffic == generate(name, shape, seed=3)
    assert traffic != generate(name, shape, seed=4)


def test_rescaling_keeps_the_time_and_multiplies_the_requests() -> None:
    traffic = generate("steady", Shape(mean_rps=5.0, duration_s=1000.0), seed=1)
    for factor in (0.3, 2.5):
        scaled = rescale_traffic(traffic, factor, seed=1)
        assert scaled.duration_s == traffic.duration_s
        ratio = len(scaled.requests) / len(traffic.requests)
        assert ratio == pytest.approx(factor, rel=0.05)
    with pytest.raises(ConfigError, match="above 0 and at most 1000; got 0"):
        rescale_traffic(traffic, 0.0, seed=1)


def test_the_restricted_share_is_drawn_by_chance() -> None:
    traffic = generate("steady", Shape(mean_rps=10.0, duration_s=500.0), seed=1)
    marked = mark_restricted(traffic, 0.3, seed=1)
    share = sum(request.is_restricted for request in marked.requests) / len(marked.requests)
    assert share == pytest.approx(0.3, abs=0.03)


def test_traffic_without_requests_has_a_rate_of_zero() -> None:
    assert build_traffic("none", [], 10.0).mean_rps == 0
