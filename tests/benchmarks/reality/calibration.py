"""What a row of the GPU table is made of: one replica measured idle, and in closed loops."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.benchmarks.reality.engine_client import EngineClient
from tests.benchmarks.reality.fit import Fit, fit_line, take_medians

PROMPTS = (32, 128, 256, 512, 1024)
LEVELS = (1, 2, 4, 8)
PROMPT_TOKENS = 160
OUTPUT_TOKENS = 64
"""On average; in closed loops from half to one and a half times as many."""
_REPEATS = 3
_WARM_UPS = 2


@dataclass(slots=True)
class Measured:
    """Points that the lines are laid through: prompt tokens and TTFT, running requests and TPOT."""

    prefills: list[tuple[float, float]] = field(default_factory=list)
    paces: list[tuple[float, float]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def fit(self) -> Fit:
        """Return the lines through the medians at each place."""
        return Fit(
            prefill=fit_line(take_medians(self.prefills)),
            pace=fit_line(take_medians(self.paces)),
            prompt_tokens=PROMPT_TOKENS,
            output_tokens=OUTPUT_TOKENS,
        )


async def calibrate(
    client: EngineClient, *, level_s: float, say: Callable[[str], None]
) -> Measured:
    """Return the points of one replica; each level of the closed loop takes `level_s` and more."""
    measured = Measured()
    for _ in range(_WARM_UPS):
        await client.ask(PROMPT_TOKENS, OUTPUT_TOKENS)
    for tokens in PROMPTS:
        for _ in range(_REPEATS):
            answer = await client.ask(tokens, 1)
            if answer.is_complete and answer.ttft_s is not None:
                measured.prefills.append((tokens, answer.ttft_s))
            elif answer.error:
                measured.errors.append(answer.error)
        say(f"prompts of {tokens} tokens: TTFT {_say_last(measured.prefills, _REPEATS)}")
    for running in LEVELS:
        paces = await _loop(client, running, level_s=level_s)
        measured.paces += [(running, pace) for pace in paces]
        say(f"{running} at once: TPOT {_say_last(measured.paces, len(paces))}")
    return measured


async def _loop(client: EngineClient, running: int, *, level_s: float) -> list[float]:
    """Keep so many requests going; return the TPOT of those that began and ended among as many."""
    began_s = time.monotonic()
    found: list[tuple[float, float, float]] = []

    async def go_on(number: int) -> None:
        # With answers of one length, clients would stay in step: all prompts read at once, and no
        # decode slowed by them.
        chance = random.Random(number)
        await asyncio.sleep(number * 0.3)
        while (sent_s := time.monotonic()) < began_s + level_s:
            tokens = chance.randint(OUTPUT_TOKENS // 2, OUTPUT_TOKENS * 3 // 2)
            answer = await client.ask(PROMPT_TOKENS, tokens)
            if answer.is_complete:
                found.append((sent_s, time.monotonic(), answer.tpot_s))

    await asyncio.gather(*(go_on(number) for number in range(running)))
    full_from_s, full_until_s = began_s + (running - 1) * 0.3, began_s + level_s
    whole = [pace for sent, ended, pace in found if sent >= full_from_s and ended <= full_until_s]
    return whole or [pace for _, _, pace in found]


def _say_last(points: Sequence[tuple[float, float]], count: int) -> str:
    values = sorted(y for _, y in points[-count:])
    if not values:
        return "none"
    middle = values[len(values) // 2]
    return f"{1e3 * middle:.0f} ms ({1e3 * values[0]:.0f}..{1e3 * values[-1]:.0f})"
