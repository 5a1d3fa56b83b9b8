import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn

import pytest
from prometheus_client import CollectorRegistry, generate_latest

import cluster
from autoscaling import metrics as m
from autoscaling.figures import Figures, LedgerView
from autoscaling.ledger_reader import LedgerReader
from autoscaling.metric_samples import find_failure_code, list_samples
from autoscaling.metrics_exporter import MetricSources, TidegateCollector
from cluster.budget import BudgetStatus, Commitment, MoneyLimits, SpendNow, budget_status
from cluster.config import ClusterSettings, load_cluster_file
from cluster.errors import StateError
from cluster.ledger import Intent, Ledger
from cluster.ledger_boot import BootRecord
from cluster.ledger_sites import Hold, Listing
from cluster.model import (
    TAG_RELEASED,
    BootStage,
    Cordon,
    NodeId,
    NodePhase,
    NodeRecord,
    NodeTypeName,
    SiteName,
    SoldOut,
)
from deployments.metrics import GatewayMetrics
from deployments.signals import GatewaySignals, ModelSignal, PoolSignal

NOW_S = 1_000_000.0
CLOUD, ONPREM = SiteName("cloud"), SiteName("onprem")


@pytest.fixture(scope="module")
def settings() -> ClusterSettings:
    """Two sites; limit 4 $/h, soft from 0.8 of it on; cloud_gpu costs 1.861 $/h."""
    return load_cluster_file(Path(cluster.__file__).parent / "local.yaml")


def node(
    name: str,
    *,
    phase: NodePhase = NodePhase.RUNNING,
    site: SiteName = CLOUD,
    node_type: str = "cloud_gpu",
    price: str | None = "1.861",
    **changes: Any,
) -> NodeRecord:
    record = NodeRecord(
        node_id=NodeId(name),
        site=site,
        node_type=NodeTypeName(node_type),
        phase=phase,
        is_head=False,
        usd_per_hour=None if price is None else Decimal(price),
        tags={},
        address="10.0.0.1",
        owner="test",
        intended_s=NOW_S - 100,
        changed_s=NOW_S - 60,
    )
    return replace(record, **changes)


def signals() -> GatewaySignals:
    pools = tuple(
        PoolSignal(
            pool=f"{site}-cpu-{market}",
            site=site,
            owned=market == "owned",
            accelerator="cpu",
            market=market,
            gpus_per_replica=1,
            slots_per_replica=8,
            min_replicas=0,
            max_replicas=2,
            replicas_running=2,
            streams_running=5,
        )
        for site, market in (("onprem", "owned"), ("cloud", "on_demand"))
    )
    return GatewaySignals("g", NOW_S, (ModelSignal("llama", "llama", 3, 2, 1, 4, 0.0, pools),))


DECISION: Mapping[str, Any] = {
    "decided_s": NOW_S - 2,
    "burst": "open",
    "targets": {"llama": {"onprem-cpu-owned": 2, "cloud-cpu-on_demand": 1}},
    "refusals": {"usd_per_hour": 2},
    "codes": [["raise", "llama/cloud-cpu-on_demand"]],
    "tick_s": {"brain": 0.01, "scheduler": 0.02},
}


def budget(*prices: str | None) -> BudgetStatus:
    """What nodes at these prices use of 4 $/h, soft from 0.8 of it on; nothing was spent."""
    commitments = [
        Commitment(None if price is None else Decimal(price), since_s=NOW_S) for price in prices
    ]
    spend = SpendNow(NOW_S, commitments, day_usd=Decimal("1.5"), month_usd=Decimal(9))
    limits = MoneyLimits(Decimal(4), Decimal(6), Decimal(9), lease_s_min=0.0)
    return budget_status(spend, limits)


def boot(name: str, stage: BootStage, at_s: float) -> BootRecord:
    return BootRecord(NodeId(name), NodeTypeName("cloud_gpu"), CLOUD, stage, at_s)


def full_ledger() -> LedgerView:
    open_nodes = [
        node("a"),
        node("b", phase=NodePhase.INTENDED, cordon=Cordon.DRAINING),
        node("d", site=ONPREM, node_type="onprem_gpu", price="0"),
    ]
    closed = node("c", phase=NodePhase.CLOSED, closed_why="no capacity: none left")
    return LedgerView(
        budget=budget("1.861", "1.861"),
        open_nodes=open_nodes,
        history=[*open_nodes, closed],
        spend_usd={"day": {CLOUD: Decimal("1.5")}, "month": {CLOUD: Decimal(9)}},
        sold_out=[SoldOut(CLOUD, "g6e.2xlarge", "us-east-1a", "spot", "Insufficient", NOW_S + 60)],
        holds=[Hold(CLOUD, NodeTypeName("cloud_gpu"), NOW_S + 30, "none left")],
        listings=[Listing(CLOUD, NOW_S - 12, NOW_S - 1, "expired", "CredentialsError")],
        boots=[
            boot("a", BootStage.INTENDED, 100.0),
            boot("a", BootStage.ACCEPTED, 101.0),
            boot("a", BootStage.RUNNING, 131.0),
            boot("b", BootStage.RUNNING, 50.0),
            boot("b", BootStage.ACCEPTED, 40.0),
        ],
    )


def sample(figures: Figures) -> dict[tuple[str, ...], float]:
    return {(one.metric.name, *one.labels): one.value for one in list_samples(figures)}


@pytest.fixture
def full(settings: ClusterSettings) -> Figures:
    return Figures(NOW_S, settings, full_ledger(), DECISION, [signals()])


def test_every_metric_has_a_name_of_ours_once_and_says_its_unit_and_meaning() -> None:
    names = [metric.name for metric in m.METRICS]
    assert len(names) == len(set(names)) >= 30
    for metric in m.METRICS:
        assert metric.name.startswith("tidegate_")
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.meaning.endswith(".")


def test_no_name_is_also_the_gateway_s() -> None:
    gateway = {family.name for family in GatewayMetrics().registry.collect()}
    assert gateway
    assert not gateway & {metric.name.removesuffix("_total") for metric in m.METRICS}


def test_every_metric_of_the_list_is_filled_with_the_labels_it_declares(full: Figures) -> None:
    found = list(list_samples(full))
    assert {one.metric.name for one in found} == {metric.name for metric in m.METRICS}
    for one in found:
        assert len(one.labels) == len(one.metric.labels), one
    keys = [(one.metric.name, one.labels) for one in found]
    assert len(keys) == len(set(keys))


def test_nodes_are_counted_by_phase_and_absent_types_show_zero(full: Figures) -> None:
    found = sample(full)
    assert found["tidegate_nodes", "cloud", "cloud_gpu", "on_demand", "running"] == 1
    assert found["tidegate_nodes", "cloud", "cloud_gpu", "on_demand", "intended"] == 1
    assert found["tidegate_nodes", "onprem", "head", "owned", "running"] == 0
    assert found["tidegate_phase_age_seconds", "cloud", "intended"] == 60
    assert found["tidegate_phase_age_seconds", "onprem", "intended"] == 0
    assert found["tidegate_nodes_cordoned", "cloud", "draining"] == 1


def test_an_address_belongs_to_the_node_that_runs_there(settings: ClusterSettings) -> None:
    """A node on its way has no address yet, one on its way out may have left it to the next."""
    nodes = [
        node("new", phase=NodePhase.INTENDED, address=None),
        node("old", phase=NodePhase.TERMINATING),
        node("now"),
    ]
    found = sample(Figures(NOW_S, settings, LedgerView(budget(), open_nodes=nodes)))
    assert [key[1] for key in found if key[0] == m.NODE_INFO.name] == ["now"]


def test_launches_and_failures_are_counted_from_the_ledger(full: Figures) -> None:
    found = sample(full)
    assert found["tidegate_launches_total", "cloud", "cloud_gpu", "on_demand"] == 3
    assert found["tidegate_launch_failures_total", "cloud", "cloud_gpu", "no_capacity"] == 1
    assert found["tidegate_launch_failures_total", "cloud", "cloud_gpu", "lost"] == 0


@pytest.mark.parametrize(
    ("why", "code"),
    [
        ("no capacity: none of g6e", "no_capacity"),
        ("launch failed: timeout", "launch_failed"),
        ("never launched: its owner ended", "owner_ended"),
        ("gone from its site", "lost"),
        ("not joined within 900 s", "not_joined"),
        ("stopped: it serves no more", "stopped"),
        ("terminated", None),
        (None, None),
    ],
)
def test_the_end_of_a_node_has_a_bounded_code(why: str | None, code: str | None) -> None:
    assert find_failure_code(why) == code


def test_committed_money_and_its_limit_s_state(full: Figures) -> None:
    """Two open nodes at 1.861 $/h are 3.722 of 4: a share of 0.9305, above the soft 0.8."""
    found = sample(full)
    assert found["tidegate_committed_usd_per_hour", "cloud", "on_demand"] == pytest.approx(3.722)
    assert found["tidegate_limit_use_ratio", "usd_per_hour"] == pytest.approx(0.9305)
    assert found["tidegate_limit_state", "usd_per_hour", "soft"] == 1
    assert found["tidegate_limit_state", "usd_per_hour", "hard"] == 0
    assert found["tidegate_spend_usd", "cloud", "day"] == 1.5
    assert found["tidegate_spend_usd", "onprem", "month"] == 0


def test_no_money_hides_behind_a_name_that_left_the_cluster_file(settings: ClusterSettings) -> None:
    """A type and a site were deleted while nodes of theirs still ran: 1.861 and 2 $/h."""
    gone = SiteName("old-cloud")
    nodes = [
        node("a", node_type="old_gpu"),
        node("b", site=gone, node_type="older_gpu", price="2", changed_s=NOW_S - 90),
        node("c", site=gone, node_type="older_gpu", price=None),
    ]
    spend: dict[SiteName, Decimal | None] = {gone: Decimal(7)}
    ledger = LedgerView(budget(), open_nodes=nodes, spend_usd={"day": spend, "month": spend})
    found = sample(Figures(NOW_S, settings, ledger))
    assert found["tidegate_committed_usd_per_hour", "cloud", "unknown"] == pytest.approx(1.861)
    assert found["tidegate_committed_usd_per_hour", "old-cloud", "unknown"] == 2
    assert found["tidegate_nodes_price_unknown", "old-cloud"] == 1
    assert found["tidegate_spend_usd", "old-cloud", "day"] == 7
    assert found["tidegate_phase_age_seconds", "old-cloud", "running"] == 90


def test_limits_on_days_and_months_count_what_was_spent(full: Figures) -> None:
    """Spent: 1.5 of 6 $ a day, 9 of 9 $ a month; two new nodes are charged 60 s, 0.062 $."""
    found = sample(full)
    assert found["tidegate_limit_use_ratio", "usd_per_day"] == pytest.approx(1.562 / 6, abs=1e-4)
    assert found["tidegate_limit_state", "usd_per_month", "hard"] == 1


def test_an_unknown_price_counts_as_a_limit_reached(settings: ClusterSettings) -> None:
    unknown: dict[SiteName, Decimal | None] = {CLOUD: None}
    ledger = LedgerView(
        budget(None), open_nodes=[node("a", price=None)], spend_usd={"day": unknown}
    )
    found = sample(Figures(NOW_S, settings, ledger))
    assert found["tidegate_nodes_price_unknown", "cloud"] == 1
    assert found["tidegate_limit_state", "usd_per_hour", "hard"] == 1
    assert found["tidegate_limit_use_ratio", "usd_per_hour"] == 1
    assert ("tidegate_spend_usd", "cloud", "day") not in found
    assert found["tidegate_spend_usd", "onprem", "day"] == 0


def test_only_refused_credentials_count_as_such(full: Figures, settings: ClusterSettings) -> None:
    assert sample(full)["tidegate_credentials_refused", "cloud"] == 1
    slow = [Listing(CLOUD, NOW_S - 12, NOW_S - 1, "timed out", "BackendError")]
    found = sample(Figures(NOW_S, settings, replace(full_ledger(), listings=slow)))
    assert found["tidegate_credentials_refused", "cloud"] == 0
    assert found["tidegate_listing_failed", "cloud"] == 1


def test_a_boot_stage_lasts_from_the_stage_recorded_before_it(full: Figures) -> None:
    """`a`: accepted after 1 s, running after 30 s more; `b`: running 10 s after accepted."""
    stages = {one.labels[2]: one for one in list_samples(full) if one.metric is m.BOOT_STAGE_S}
    assert (stages["accepted"].value, stages["accepted"].count) == (1.0, 1)
    assert (stages["running"].value, stages["running"].count) == (40.0, 2)


def test_what_is_sold_out_no_longer_is_not_shown(full: Figures) -> None:
    assert sample(full)["tidegate_sold_out_offerings", "cloud"] == 1
    later = sample(replace(full, now_s=NOW_S + 61))
    assert later["tidegate_sold_out_offerings", "cloud"] == 0
    assert later["tidegate_holds", "cloud"] == 0
    assert not [key for key in later if key[0] == m.SOLD_OUT_UNTIL.name]


def test_demand_and_capacity_add_up_over_gateways(full: Figures) -> None:
    """Two gateways see the same 2 replicas of 8 slots, and 5 streams each of their own."""
    other = replace(signals(), gateway="h")
    found = sample(replace(full, signals=[signals(), other]))
    pool = ("llama", "cloud-cpu-on_demand", "cloud", "on_demand")
    assert found["tidegate_pool_slots", *pool] == 16
    assert found["tidegate_pool_streams", *pool] == 10
    assert found["tidegate_pool_replicas", *pool, "planned"] == 1
    assert found["tidegate_model_waiting", "llama", "public"] == 6


def test_exactly_one_burst_state_is_shown(full: Figures) -> None:
    states = {key[1]: v for key, v in sample(full).items() if key[0] == m.BURST_STATE.name}
    assert states == {"closed": 0, "opening": 0, "open": 1, "closing": 0}


def test_a_node_that_was_sent_home_is_no_failure_however_it_was_found(full: Figures) -> None:
    """Two were found stopped by their site; one of them had been released."""
    why = "stopped: it serves no more"
    ended = [node(name, phase=NodePhase.CLOSED, closed_why=why) for name in ("a", "b")]
    ended[1] = replace(ended[1], tags={TAG_RELEASED: "true"})
    found = sample(replace(full, ledger=replace(full_ledger(), history=ended)))
    assert found["tidegate_launch_failures_total", "cloud", "cloud_gpu", "stopped"] == 1


def test_shadow_mode_shows_what_would_run_and_acting_shows_zeros(full: Figures) -> None:
    """Two replicas would run, 4 of 31 late requests would be left, for 1.02 $."""
    app, pool = "llama", "cloud-cpu-on_demand"
    keys = [
        ("tidegate_shadow_replicas", app, pool),
        ("tidegate_shadow_usd", app),
        ("tidegate_shadow_late_requests", app, "real"),
        ("tidegate_shadow_late_requests", app, "shadow"),
    ]
    assert [sample(full)[key] for key in keys] == [0, 0, 0, 0]
    told = {"pools": {pool: {"replicas": 2}}, "usd": 1.02, "late": 31, "late_then": 4}
    found = sample(replace(full, decision={**DECISION, "shadow": {"models": {app: told}}}))
    assert [found[key] for key in keys] == [2, 1.02, 31, 4]
    assert found["tidegate_shadow_replicas", app, "onprem-cpu-owned"] == 0


def _fail() -> NoReturn:
    raise StateError("ledger.db must be a usable ledger; got: disk I/O error.")


def _collector(settings: ClusterSettings, read_ledger: Callable[[], Any]) -> TidegateCollector:
    return TidegateCollector(
        MetricSources(
            read_settings=lambda: settings,
            read_ledger=read_ledger,
            read_decision=lambda: DECISION,
            read_signals=lambda: [signals()],
            now_s=lambda: NOW_S,
        )
    )


def _scrape(collector: TidegateCollector) -> str:
    registry = CollectorRegistry(auto_describe=True)
    registry.register(collector)
    return generate_latest(registry).decode()


def test_a_ledger_that_cannot_be_read_is_a_metric_and_not_a_crash(
    settings: ClusterSettings, caplog: pytest.LogCaptureFixture
) -> None:
    collector = _collector(settings, _fail)
    _scrape(collector)
    text = _scrape(collector)
    assert 'tidegate_source_readable{source="ledger"} 0.0' in text
    assert 'tidegate_burst_state{state="open"} 1.0' in text
    assert "tidegate_nodes{" not in text
    assert caplog.text.count("disk I/O error") == 1


def test_registering_reads_nothing(settings: ClusterSettings) -> None:
    reads: list[int] = []

    def read() -> LedgerView:
        reads.append(1)
        return full_ledger()

    registry = CollectorRegistry(auto_describe=True)
    registry.register(_collector(settings, read))
    assert not reads
    generate_latest(registry)
    assert len(reads) == 1


def test_signals_of_a_gateway_that_fell_silent_do_not_count(settings: ClusterSettings) -> None:
    collector = TidegateCollector(
        MetricSources(
            read_settings=lambda: settings,
            read_ledger=full_ledger,
            read_decision=lambda: None,
            read_signals=lambda: [signals()],
            now_s=lambda: NOW_S + 11,
        )
    )
    text = _scrape(collector)
    assert 'tidegate_source_readable{source="signals"} 1.0' in text
    assert "tidegate_pool_streams{" not in text


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Debian's prometheus isn't installed")
def test_prometheus_own_linter_has_no_remark(settings: ClusterSettings) -> None:
    text = _scrape(_collector(settings, full_ledger))
    done = subprocess.run(
        ["promtool", "check", "metrics"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_ledger_is_read_without_writing_to_it(
    settings: ClusterSettings, tmp_path: Path
) -> None:
    """One cloud node for 30 min at 2 $/h has cost 1 $, all of it on the same day (04:00 UTC)."""
    here = replace(settings, state_dir=tmp_path)
    at_s = 1_700_020_800.0
    reader = LedgerReader(lambda: here, now_s=lambda: at_s)
    with pytest.raises(StateError, match="there is no such file"):
        reader.read()
    file = tmp_path / "tidegate-local" / "ledger.db"
    writer = Ledger(file, now_s=lambda: at_s - 1800)
    _open_intent(writer, "a")
    writer.mark_launched(NodeId("a"))
    before = file.read_bytes()
    view = reader.read()
    assert reader.read() == view
    assert view.spend_usd == {"day": {CLOUD: 1}, "month": {CLOUD: 1}}
    assert [record.node_id for record in view.open_nodes] == ["a"]
    assert [record.node_id for record in view.history] == ["a"]
    assert sorted(record.stage for record in view.boots) == ["accepted", "intended"]
    assert view.is_lease_held is False
    assert file.read_bytes() == before


def test_what_happens_after_the_first_look_is_seen_and_not_counted_twice(
    settings: ClusterSettings, tmp_path: Path
) -> None:
    """The past is read anew after 60 s, boot stages at once."""
    here = replace(settings, state_dir=tmp_path)
    clock_s = [1_700_020_800.0]
    writer = Ledger(tmp_path / "tidegate-local" / "ledger.db", now_s=lambda: clock_s[0])
    reader = LedgerReader(lambda: here, now_s=lambda: clock_s[0])
    assert reader.read().history == []
    _open_intent(writer, "a")
    view = reader.read()
    assert ([one.node_id for one in view.open_nodes], view.history) == (["a"], [])
    clock_s[0] += 60
    writer.mark_launched(NodeId("a"))
    view = reader.read()
    assert [one.node_id for one in view.history] == ["a"]
    assert [one.stage for one in view.boots] == [BootStage.INTENDED, BootStage.ACCEPTED]


def test_a_clock_that_ran_ahead_for_a_while_hides_no_later_boot(
    settings: ClusterSettings, tmp_path: Path
) -> None:
    """The first node is noted a day in the future; then the clock is put right."""
    here = replace(settings, state_dir=tmp_path)
    clock_s = [1_700_020_800.0 + 86_400]
    writer = Ledger(tmp_path / "tidegate-local" / "ledger.db", now_s=lambda: clock_s[0])
    reader = LedgerReader(lambda: here, now_s=lambda: clock_s[0])
    _open_intent(writer, "a")
    assert len(reader.read().boots) == 1
    clock_s[0] -= 86_400
    _open_intent(writer, "b")
    assert {boot.node_id for boot in reader.read().boots} == {"a", "b"}


def _open_intent(ledger: Ledger, name: str) -> None:
    intent = Intent(
        node_id=NodeId(name),
        site=CLOUD,
        node_type=NodeTypeName("cloud_gpu"),
        is_head=False,
        usd_per_hour=Decimal(2),
        tags={},
        node_config={},
    )
    ledger.open_intents([intent], owner="test", check=lambda _books: None)
