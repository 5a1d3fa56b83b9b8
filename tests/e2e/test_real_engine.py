"""From a start to streamed tokens with real vLLM, through the OpenAI client.

Earns its two minutes: it is the main job of the product, run exactly as a user runs it.
"""

import time

import httpx
import pytest
from openai import OpenAI

from tests.e2e.served import Served

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(900)]

MODEL = "smollm2-135m"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def client(real: Served) -> OpenAI:
    return OpenAI(base_url=f"{real.url}/v1", api_key=real.key)


def test_the_capital_of_france_is_streamed_from_the_owned_site(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=QUESTION, temperature=0, stream=True, max_tokens=32
    )
    assert raw.headers["x-tidegate-site"] == "onprem"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in raw.parse() if chunk.choices)
    assert "Paris" in text


def test_an_answer_in_one_piece_counts_its_tokens(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, max_tokens=8
    )
    assert answer.usage.completion_tokens <= 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_the_model_is_listed(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]


def test_a_client_that_leaves_frees_its_slot(real: Served) -> None:
    """Eight streams of 1,500 tokens are dropped; within 10 s the gateway counts none."""
    body = {
        "model": MODEL,
        "messages": QUESTION,
        "max_tokens": 1500,
        "stream": True,
        "ignore_eos": True,
    }
    headers = {"Authorization": f"Bearer {real.key}"}
    with httpx.Client(base_url=real.url, headers=headers, timeout=60) as http:
        for _ in range(8):
            with http.stream("POST", "/v1/chat/completions", json=body) as response:
                next(response.iter_lines())
    deadline_s = time.monotonic() + 10
    while (open_streams := count_open_streams(real)) and time.monotonic() < deadline_s:
        time.sleep(0.2)
    assert open_streams == 0


def count_open_streams(real: Served) -> float:
    """The gateway's own count of streams it holds a slot for."""
    headers = {"Authorization": f"Bearer {real.key}"}
    text = httpx.get(f"{real.url}/metrics", headers=headers).text
    lines = [line for line in text.splitlines() if line.startswith("tidegate_streams{")]
    assert lines, text[:1000]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)
