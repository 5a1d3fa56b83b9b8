"""A spot instance is taken away with notice, while streams are open on it.

Earns its minutes: notice, drain, replacement and the client's stream meet nowhere else.
"""

import asyncio
import json
import time
from dataclasses import dataclass

import pytest

from infra.stream_client import Stream
from tests.lab.hybrid import HybridLab
from tests.lab.hybrid_files import CLOUD
from tests.lab.steps import open_burst

pytestmark = [pytest.mark.lab, pytest.mark.ray, pytest.mark.timeout(540)]

NOTICE_S = 40
SHORT_TOKENS = 60
LONG_TOKENS = 600
END_S_MAX = 150


@dataclass(frozen=True, slots=True)
class Taken:
    """What happened: streams by the length asked for, and when, in wall time."""

    short: list[Stream]
    long: list[Stream]
    announced_s: float
    gone_s: float


def test_streams_that_fit_the_notice_finish_and_none_ends_silently(running: HybridLab) -> None:
    """12 streams: 4 fill the owned slots, 8 are in the cloud, where a token takes about 0.12 s.

    60 tokens take 7 s of the notice's 40 s; 600 take 70 s and can't end before the machine does.
    """
    with open_burst(running):
        pass
    with running.head.in_network():
        taken = asyncio.run(stream_through_notice(running))
    in_cloud = [stream for stream in [*taken.short, *taken.long] if stream.site == CLOUD]
    assert len(in_cloud) == 8
    assert [stream.error for stream in taken.short if not stream.is_complete] == []
    cut = [stream for stream in taken.long if stream.site == CLOUD]
    assert cut
    for stream in cut:
        assert stream.error is not None, "a stream must not end silently"
        assert "ask again" in json.loads(stream.error)["message"]
    assert [stream.error for stream in taken.long if stream.site != CLOUD and stream.error] == []
    launches_s = [call.at_s for call in running.faults.calls if call.action == "RunInstances"]
    assert any(taken.announced_s < at_s < taken.gone_s for at_s in launches_s), launches_s


async def stream_through_notice(hybrid: HybridLab) -> Taken:
    """Return what became of the streams when every rented machine was taken away."""
    client = hybrid.open_client()
    lengths = [LONG_TOKENS] * 4 + [SHORT_TOKENS] * 4 + [LONG_TOKENS] * 4
    opened = []
    for tokens in lengths:
        opened.append(client.start("hello", max_tokens=tokens, ignore_eos=True))
        await asyncio.sleep(0.1)
    await asyncio.sleep(2)
    leaving = dict(hybrid.hypervisor.machines)
    announced_s = time.time()
    for machine in leaving.values():
        machine.imds.announce_interruption(announced_s + NOTICE_S)
    await asyncio.sleep(NOTICE_S)
    gone_s = time.time()
    for instance_id in leaving:
        hybrid.hypervisor.crash(instance_id)
    await asyncio.wait_for(asyncio.gather(*(task for _, task in opened)), timeout=END_S_MAX)
    await client.close()
    streams = [stream for stream, _ in opened]
    return Taken(streams[4:8], streams[:4] + streams[8:], announced_s, gone_s)
