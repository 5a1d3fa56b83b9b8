"""What answers teach: lengths, and how fast a pool really is."""

from dataclasses import replace

import pytest

from autoscaling.capacity import Lengths, find_pace_s, find_rps, find_variation
from autoscaling.learning import (
    _FULL_WEIGHT,
    Learned,
    LengthSums,
    PoolSpeed,
    estimate_rps,
    estimate_variation,
    find_performance,
    learn,
)
from deployments.signals import GatewaySignals, ModelSignal, PoolSignal, Served
from tests.autoscaling.brain_run import MODEL, ONPREM

TABLED = replace(ONPREM, gpu_row="a100-80-8b", slots_per_replica=10, replicas_running=1)
PLAIN = replace(TABLED, gpu_row=None)
# 20 requests of 100 + 50 tokens: the lengths of the tests. Held 5 s each.
LENGTHS = Lengths(100, 50)
BATCH = Served(requests=20, prompt_tokens=2000, output_tokens=1000, hold_s=100.0)


def times(served: Served, count: int) -> Served:
    """The counters after so many batches."""
    return Served(
        requests=served.requests * count,
        prompt_tokens=served.prompt_tokens * count,
        output_tokens=served.output_tokens * count,
        hold_s=served.hold_s * count,
        decode_tokens=served.decode_tokens * count,
        decode_s=served.decode_s * count,
        cached_tokens=served.cached_tokens * count,
        read_tokens_squared=served.read_tokens_squared * count,
        output_tokens_squared=served.output_tokens_squared * count,
    )


def report(
    pool: PoolSignal, served: Served, *, at_s: float, waiting: int = 0, gateway: str = "a"
) -> GatewaySignals:
    model: ModelSignal = replace(
        MODEL, waiting_public=waiting, pools=(replace(pool, served=served),), tpot_s_max=0.1
    )
    return GatewaySignals(gateway, at_s, (model,))


def teach(
    pool: PoolSignal,
    *,
    bins: int,
    streams: int = 0,
    waiting: int = 0,
    batch: Served = BATCH,
    learned: Learned | None = None,
) -> Learned:
    """What is known after bins of ten seconds, in each of which one batch is answered."""
    learned = Learned() if learned is None else learned
    begin_s = learned.looked_s or 0.0
    pool = replace(pool, streams_running=streams)
    for second in range(bins * 10 + 1):
        now_s = begin_s + second
        seen = report(pool, times(batch, second // 10), at_s=now_s, waiting=waiting)
        learned = learn(learned, [seen], "m", now_s=now_s, keep_s=600)
    return learned


def rps_of(learned: Learned, pool: PoolSignal, *, is_corrected: bool = True) -> float | None:
    return estimate_rps(learned, pool, tpot_s_max=0.1, is_corrected=is_corrected)


def table_rps(pool: PoolSignal) -> float:
    performance = find_performance(pool)
    assert performance is not None
    return find_rps(performance, LENGTHS, slots=pool.slots_per_replica, tpot_s_max=0.1)


def test_nothing_is_known_before_enough_was_answered() -> None:
    assert rps_of(teach(TABLED, bins=0), TABLED) is None
    few = replace(BATCH, requests=5)
    assert teach(TABLED, bins=1, batch=few).lengths.mean is None


def test_lengths_are_means_of_what_was_answered() -> None:
    assert teach(TABLED, bins=3).lengths.mean == LENGTHS


def test_lengths_forget_half_in_ten_minutes() -> None:
    """Sixty bins of 20 with nothing after them for sixty bins count as half as many."""
    before = teach(TABLED, bins=60)
    after = teach(TABLED, bins=60, batch=Served(), learned=replace(before, served={}))
    assert after.lengths.requests == pytest.approx(before.lengths.requests / 2)
    assert after.lengths.mean == before.lengths.mean


def test_half_of_each_prompt_cached_is_the_capacity_of_half_the_prompt() -> None:
    """1,000 of each batch's 2,000 prompt tokens weren't read; memory is far from short."""
    learned = teach(TABLED, bins=3, batch=replace(BATCH, cached_tokens=1000))
    assert learned.lengths.mean == replace(LENGTHS, cached_tokens=50)
    performance = find_performance(TABLED)
    assert performance is not None
    half = Lengths(50, 50)
    expected = find_rps(performance, half, slots=TABLED.slots_per_replica, tpot_s_max=0.1)
    assert rps_of(learned, TABLED) == pytest.approx(expected)
    assert expected > table_rps(TABLED)


def test_the_cached_share_of_prompts_is_forgotten_and_learned_anew() -> None:
    """Half cached for ten minutes, then none for ten: the first weigh half, 50 x 0.5 / 1.5."""
    reused = teach(TABLED, bins=60, batch=replace(BATCH, cached_tokens=1000))
    later = teach(TABLED, bins=60, learned=replace(reused, served={}))
    before, after = reused.lengths.mean, later.lengths.mean
    assert before is not None
    assert after is not None
    assert (before.cached_tokens, after.cached_tokens) == pytest.approx((50, 50 / 3), rel=0.02)


def test_a_pace_that_fits_what_was_read_corrects_nothing() -> None:
    """All but 10 of 2,000 tokens are cached, and tokens come as fast as that makes them.

    For whole prompts that pace would be more than twice the table's, and a correction.
    """
    performance = find_performance(TABLED)
    assert performance is not None
    lengths = Lengths(2000, 50, cached_tokens=1990)
    pace_s = find_pace_s(performance, lengths, batch=5)
    assert find_pace_s(performance, Lengths(2000, 50), batch=5) > 1.5 * pace_s
    batch = replace(
        BATCH,
        prompt_tokens=40_000,
        cached_tokens=39_800,
        decode_tokens=1000,
        decode_s=1000 * pace_s,
    )
    learned = teach(TABLED, bins=5, streams=5, batch=batch)
    assert learned.speeds["onprem"].ratio == 1.0


# Of each batch's 20 prompts 19 have 50 tokens, one 1,050; all outputs have 50.
VARIED = replace(BATCH, read_tokens_squared=19 * 50**2 + 1050**2, output_tokens_squared=20 * 50**2)


def test_how_much_work_varies_is_learned_from_squares() -> None:
    """A mean of 100 and squares of 57,500: C2 of what is read is 4.75."""
    mean = teach(TABLED, bins=3, batch=VARIED).lengths.mean
    assert mean is not None
    assert (mean.read_variation, mean.output_variation) == pytest.approx((4.75, 0))


def test_work_varies_as_on_the_first_owned_pool_with_a_known_speed() -> None:
    learned = teach(TABLED, bins=3, batch=VARIED)
    mean, performance = learned.lengths.mean, find_performance(TABLED)
    assert mean is not None
    assert performance is not None
    slots = TABLED.slots_per_replica
    expected = find_variation(performance, mean, slots=slots, tpot_s_max=0.1)
    assert 0 < expected < 4.75
    rented = replace(TABLED, owned=False, gpu_row="l40s-8b")
    for pools in ([TABLED], [PLAIN, TABLED], [rented, TABLED]):
        assert estimate_variation(learned, pools, tpot_s_max=0.1) == expected


def test_without_squares_lengths_or_speeds_work_varies_as_exponential_work_does() -> None:
    varied = teach(TABLED, bins=3, batch=VARIED)
    assert estimate_variation(teach(TABLED, bins=3), [TABLED], tpot_s_max=0.1) == 1
    assert estimate_variation(Learned(), [TABLED], tpot_s_max=0.1) == 1
    assert estimate_variation(varied, [PLAIN], tpot_s_max=0.1) == 1
    assert estimate_variation(varied, [], tpot_s_max=0.1) == 1


def test_an_older_gateways_answers_change_no_variation() -> None:
    """Two gateways answer the same; only one says its squares."""
    learned = Learned()
    for second in range(21):
        now_s = float(second)
        batches = [("a", VARIED), ("b", replace(BATCH, prompt_tokens=90_000))]
        seen = [report(TABLED, times(b, second // 10), at_s=now_s, gateway=g) for g, b in batches]
        learned = learn(learned, seen, "m", now_s=now_s, keep_s=600)
    mean = learned.lengths.mean
    assert mean is not None
    assert mean.prompt_tokens == pytest.approx(92_000 / 40)
    assert mean.read_variation == pytest.approx(4.75)


def test_the_table_tells_the_speed_of_a_row_until_measurements_do() -> None:
    assert rps_of(teach(TABLED, bins=2), TABLED) == pytest.approx(table_rps(TABLED))


def test_without_a_row_slots_by_the_time_one_is_held_tell_the_speed() -> None:
    """Ten slots held 5 s each: two a second."""
    assert rps_of(teach(PLAIN, bins=2), PLAIN) == pytest.approx(2.0)


def test_without_a_row_a_full_pool_corrects_the_first_guess() -> None:
    """20 finished in 10 s of one full replica are 2 a second; then 40: half of the way to 4."""
    learned = teach(PLAIN, bins=2, streams=10, waiting=5)
    assert learned.speeds["onprem"].rps == pytest.approx(2.0)
    faster = replace(times(BATCH, 2), hold_s=200.0)
    learned = teach(
        PLAIN,
        bins=1,
        streams=10,
        waiting=5,
        batch=faster,
        learned=replace(learned, served={"a/onprem": Served()}),
    )
    assert learned.speeds["onprem"].rps == pytest.approx(2.0 + _FULL_WEIGHT * 2.0)


def test_a_full_pools_finished_requests_correct_the_table() -> None:
    """It finishes half of what the table says: half of the way each bin, until it is half."""
    half = replace(BATCH, requests=round(table_rps(TABLED) * 10 / 2))
    batch = replace(half, prompt_tokens=half.requests * 100, output_tokens=half.requests * 50)
    learned = teach(TABLED, bins=40, streams=10, waiting=5, batch=batch)
    assert learned.speeds["onprem"].ratio == pytest.approx(0.5, abs=0.02)
    corrected = rps_of(learned, TABLED)
    assert corrected == pytest.approx(table_rps(TABLED) / 2, rel=0.05)
    assert rps_of(learned, TABLED, is_corrected=False) == pytest.approx(table_rps(TABLED))


def test_a_pool_nobody_waits_for_tells_no_capacity() -> None:
    """Less than it could is answered because no more comes."""
    learned = teach(TABLED, bins=10, streams=10)
    assert learned.speeds["onprem"].ratio == 1.0


def test_a_pool_that_has_just_filled_tells_no_capacity_before_the_first_answers_have_left() -> None:
    """Each is held 35 s: four full bins must lie behind before what finishes is the capacity.

    The first bin of all doesn't count: nobody knows which replicas were there before it.
    """
    long = replace(BATCH, hold_s=35.0 * BATCH.requests)
    learned = teach(TABLED, bins=5, streams=10, waiting=5, batch=long)
    assert learned.speeds["onprem"].ratio == 1.0
    learned = teach(TABLED, bins=6, streams=10, waiting=5, batch=long)
    assert learned.speeds["onprem"].ratio < 1.0


def test_looks_that_come_late_do_not_hide_that_replicas_are_the_same() -> None:
    """A look every 1.05 s: of ten bins of 9 or 10 looks, all but the first are known to be full."""
    learned, pool = Learned(), replace(PLAIN, streams_running=10)
    for look in range(100):
        now_s = 1.05 * look
        served = times(replace(BATCH, requests=1, hold_s=1.0), int(4 * now_s))
        seen = report(pool, served, at_s=now_s, waiting=5)
        learned = learn(learned, [seen], "m", now_s=now_s, keep_s=600)
    assert learned.speeds["onprem"].full_s == 90
    assert learned.speeds["onprem"].rps == pytest.approx(4.0, rel=0.1)


def test_a_replica_that_joins_begins_the_wait_anew() -> None:
    """Its first answers are still to come: what the two finish is not what they can."""
    long = replace(BATCH, hold_s=35.0 * BATCH.requests)
    before = teach(TABLED, bins=5, streams=10, waiting=5, batch=long)
    joined = replace(TABLED, replicas_running=2)
    after = teach(
        joined, bins=4, streams=20, waiting=5, batch=long, learned=replace(before, served={})
    )
    assert after.speeds["onprem"].ratio == 1.0


def test_answers_that_have_not_ended_stretch_the_mean_length() -> None:
    """Slots were held twice as long as those that ended held them: the long ones run on."""
    sums = LengthSums(40, 4000, 2000, hold_s=100.0, streams_s=200.0)
    assert sums.mean == Lengths(100, 100)
    assert replace(sums, streams_s=50.0).mean == Lengths(100, 50)


def test_what_may_not_leave_says_nothing_of_a_cloud_pools_capacity() -> None:
    """It waits for owned replicas; the cloud's have nothing more to do."""
    cloud = replace(TABLED, owned=False, market="spot")
    learned = teach(cloud, bins=10, streams=2, waiting=5)
    assert learned.speeds["onprem"].ratio == 1.0


def paced(times_slower: float) -> Served:
    """A batch whose tokens came so much slower than the table says for 5 at once."""
    performance = find_performance(TABLED)
    assert performance is not None
    pace_s = find_pace_s(performance, LENGTHS, batch=5)
    return replace(BATCH, decode_tokens=1000, decode_s=1000 * pace_s * times_slower)


@pytest.mark.parametrize("times_slower", [0.7, 1.0, 1.4])
def test_a_pace_within_half_of_the_tables_corrects_nothing(times_slower: float) -> None:
    learned = teach(TABLED, bins=5, streams=5, batch=paced(times_slower))
    assert learned.speeds["onprem"].ratio == 1.0


def test_a_pace_that_is_off_by_more_corrects_the_table() -> None:
    """Twice as slow: a fifth of the way to 1/2 in the first bin with lengths, there after forty."""
    slow = paced(2.0)
    assert teach(TABLED, bins=2, streams=5, batch=slow).speeds["onprem"].ratio == pytest.approx(0.9)
    learned = teach(TABLED, bins=40, streams=5, batch=slow)
    assert learned.speeds["onprem"].ratio == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(("times_slower", "ratio"), [(100.0, 0.25), (0.01, 4.0)])
def test_no_measurement_moves_the_table_beyond_four_times(
    times_slower: float, ratio: float
) -> None:
    learned = teach(TABLED, bins=60, streams=5, batch=paced(times_slower))
    assert learned.speeds["onprem"].ratio == pytest.approx(ratio, rel=0.01)


def after_a_silence(pool: PoolSignal) -> tuple[PoolSpeed, PoolSpeed]:
    """The speed of a full pool before and after 30 s in which nobody reported."""
    before = teach(pool, bins=3, streams=10, waiting=5)
    full = replace(pool, streams_running=10)
    seen = report(full, times(BATCH, 9), at_s=60.0, waiting=5)
    after = learn(before, [seen], "m", now_s=60.0, keep_s=600)
    return before.speeds["onprem"], after.speeds["onprem"]


@pytest.mark.parametrize("pool", [TABLED, PLAIN], ids=["table", "measured"])
def test_a_silence_teaches_nothing(pool: PoolSignal) -> None:
    """What was answered meanwhile has no time to be divided by."""
    before, after = after_a_silence(pool)
    assert (after.ratio, after.rps) == (before.ratio, before.rps)
    assert (after.streams_s, after.replicas_s) == (0.0, 0.0)


def test_a_full_bin_in_which_nothing_finished_leaves_a_speed_above_zero() -> None:
    """Answers longer than a bin: a rate of nothing would make every wait endless."""
    learned = teach(PLAIN, bins=2, streams=10, waiting=5)
    rested = teach(PLAIN, bins=50, streams=10, waiting=5, batch=Served(), learned=learned)
    found = rested.speeds["onprem"].rps
    assert found is not None
    assert found > 0


def test_counters_that_fell_begin_again() -> None:
    """A gateway started again and has answered one batch since: nothing negative is learned."""
    learned = teach(TABLED, bins=5)
    requests = learned.lengths.requests
    for second in range(1, 11):
        now_s = 50.0 + second
        seen = report(TABLED, BATCH, at_s=now_s)
        learned = learn(learned, [seen], "m", now_s=now_s, keep_s=600)
    assert learned.lengths.requests > requests
    mean = learned.lengths.mean
    assert mean is not None
    assert (mean.prompt_tokens, mean.output_tokens) == pytest.approx((100, 50))


def test_gateways_add_up_their_answers_and_share_their_replicas() -> None:
    """Two gateways with 5 streams each fill the one replica of ten slots that both see."""
    learned = Learned()
    for second in range(21):
        served = times(replace(BATCH, requests=10, hold_s=50.0, cached_tokens=700), second // 10)
        pool = replace(PLAIN, streams_running=5)
        seen = [report(pool, served, at_s=float(second), waiting=1, gateway=name) for name in "ab"]
        learned = learn(learned, seen, "m", now_s=float(second), keep_s=600)
    assert learned.speeds["onprem"].rps == pytest.approx(2.0), "20 in 10 s by one full replica"
    mean = learned.lengths.mean
    assert mean is not None
    assert mean.cached_tokens == pytest.approx(70)


def test_another_models_answers_teach_nothing() -> None:
    other = report(TABLED, BATCH, at_s=0.0)
    learned = learn(Learned(), [other], "another", now_s=0.0, keep_s=600)
    assert (learned.served, learned.speeds) == ({}, {})


def test_a_pool_nothing_is_known_of_is_as_fast_as_its_row() -> None:
    """It never ran: lengths were learned elsewhere."""
    learned = Learned(lengths=LengthSums(100, 10_000, 5000))
    assert rps_of(learned, TABLED) == pytest.approx(table_rps(TABLED))
    assert rps_of(learned, PLAIN) is None
