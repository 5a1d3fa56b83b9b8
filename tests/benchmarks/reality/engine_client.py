"""One engine replica, asked directly over HTTP with token ids, so that lengths are exact."""

import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from autoscaling.simulator.traffic import TraceRequest
from deployments.header_names import CLASS_HEADER
from tests.benchmarks.reality.replay import Answer, Send

# Ids that are words of any vocabulary of this size; special tokens come first.
_TOKEN_MIN, _TOKEN_MAX = 1000, 30_000


@dataclass(frozen=True, slots=True)
class Door:
    """Where a replica listens."""

    url: str
    credential: str = field(repr=False)
    model: str

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], *, model: str) -> "Door":
        """Return the door that a replica's metadata describes."""
        return cls(metadata["url"], metadata["credential"], model)


class EngineClient:
    """Asks one replica. No two prompts begin alike, so that no prefix is reused."""

    def __init__(self, door: Door, *, seed: int) -> None:
        self._door = door
        self._chance = random.Random(seed)
        self._http = httpx.AsyncClient(
            base_url=door.url,
            headers={"Authorization": f"Bearer {door.credential}", CLASS_HEADER: "internal"},
            timeout=httpx.Timeout(None, connect=10.0),
            limits=httpx.Limits(max_connections=None),
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def ask(self, prompt_tokens: int, output_tokens: int, *, began_s: float = 0.0) -> Answer:
        """Return how one request went. Token times are those of the events that brought them."""
        prompt = [self._chance.randint(_TOKEN_MIN, _TOKEN_MAX) for _ in range(prompt_tokens)]
        body = {
            "model": self._door.model,
            "prompt": prompt,
            "max_tokens": output_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        sent_s = time.monotonic()
        found = _Found()
        try:
            async with self._http.stream("POST", "/v1/completions", json=body) as response:
                if response.is_error:
                    text = (await response.aread()).decode(errors="replace")
                    return Answer(sent_s - began_s, error=f"{response.status_code}: {text:.200}")
                async for line in response.aiter_lines():
                    found.read(line)
        except httpx.HTTPError as error:
            return Answer(sent_s - began_s, error=f"{type(error).__name__}: {error}")
        return found.to_answer(sent_s, began_s, asked=(prompt_tokens, output_tokens))

    async def find_kv_tokens(self) -> int | None:
        """Return how many tokens vLLM's KV memory holds; None if the engine doesn't say."""
        text = (await self._http.get("/metrics")).text
        for line in text.splitlines():
            if line.startswith("vllm:cache_config_info{"):
                labels = dict(
                    part.split("=", 1)
                    for part in line.split("{")[1].split("}")[0].split(",")
                    if part
                )
                blocks = labels.get("num_gpu_blocks", "").strip('"')
                size = labels.get("block_size", "").strip('"')
                if blocks.isdigit() and size.isdigit():
                    return int(blocks) * int(size)
        return None

    def as_sender(self) -> Send:
        """Return what sends the requests of a trace here."""

        async def send(request: TraceRequest, began_s: float) -> Answer:
            return await self.ask(request.prompt_tokens, request.output_tokens, began_s=began_s)

        return send


@dataclass(slots=True)
class _Found:
    """What the events of one stream said."""

    first_s: float | None = None
    last_s: float = 0.0
    usage: Mapping[str, int] = field(default_factory=dict)
    has_done: bool = False
    error: str = ""

    def read(self, line: str) -> None:
        """Note one line."""
        if not line.startswith("data: "):
            return
        data = line.removeprefix("data: ")
        if data == "[DONE]":
            self.has_done = True
            return
        event = json.loads(data)
        if "error" in event:
            self.error = json.dumps(event["error"])
        self.usage = event.get("usage") or self.usage
        if event.get("choices"):
            self.last_s = time.monotonic()
            self.first_s = self.first_s or self.last_s

    def to_answer(self, sent_s: float, began_s: float, *, asked: tuple[int, int]) -> Answer:
        """Return the answer as its client saw it."""
        got = (self.usage.get("prompt_tokens", 0), self.usage.get("completion_tokens", 0))
        error = self.error or ("" if self.has_done else "the stream ended early")
        if not error and got != asked:
            error = f"asked for {asked} tokens of prompt and answer, got {got}"
        if self.first_s is None:
            return Answer(sent_s - began_s, error=error or "no token came")
        return Answer(
            sent_s=sent_s - began_s,
            ttft_s=self.first_s - sent_s,
            tpot_s=(self.last_s - self.first_s) / max(1, got[1] - 1),
            ended_s=self.last_s - began_s,
            prompt_tokens=got[0],
            output_tokens=got[1],
            error=error,
        )
