"""The table of GPU speeds shipped with the project, checked once when it is read."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from deployments.continuous_batching import Performance

_TABLE = Path(__file__).with_name("gpu_performance.yaml")
_TTFT_PROMPT_TOKENS = 1024
_MS = 1e-3


class PerformanceRow(BaseModel):
    """One row: a model on one kind of replica, with where its numbers come from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gpus: Annotated[int, Field(gt=0, description="GPUs of one replica.")]
    tpot_base_ms: Annotated[float, Field(gt=0)]
    tpot_per_running_ms: Annotated[float, Field(ge=0)]
    ttft_1024_ms: Annotated[float, Field(gt=0, description="1024-token prompt, idle replica.")]
    kv_capacity_tokens: Annotated[int, Field(gt=0)]
    fit_prompt_tokens: Annotated[int, Field(gt=0, description="Prompt of the fit's requests.")] = (
        1024
    )
    fit_output_tokens: Annotated[int, Field(gt=0, description="Answer of the fit's requests.")] = (
        256
    )
    kind: Literal["measured", "modelled", "derived", "made_up"]
    source: Annotated[str, Field(min_length=20)]

    def to_performance(self) -> Performance:
        """Timing in seconds; a prefill costs one decode step plus a time per prompt token.

        The step is the least any forward pass takes, so the measured TTFT less one step, spread
        over its 1024 tokens, is the time per token.
        """
        prefill_ms = max(0.0, self.ttft_1024_ms - self.tpot_base_ms)
        return Performance(
            tpot_base_s=self.tpot_base_ms * _MS,
            tpot_per_running_s=self.tpot_per_running_ms * _MS,
            prefill_base_s=self.tpot_base_ms * _MS,
            prefill_per_token_s=prefill_ms * _MS / _TTFT_PROMPT_TOKENS,
            kv_capacity_tokens=self.kv_capacity_tokens,
        )

    def to_decode_performance(self) -> Performance:
        """The same with the pace of decoding alone.

        A slope fitted under load holds prefills too: each request of the fit cost its batch one
        prefill per `fit_output_tokens` steps. That share is taken out.
        """
        whole = self.to_performance()
        share_s = whole.prefill_per_token_s * self.fit_prompt_tokens / self.fit_output_tokens
        return replace(whole, tpot_per_running_s=max(0.0, whole.tpot_per_running_s - share_s))


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: dict[str, PerformanceRow]


@cache
def load_rows() -> dict[str, PerformanceRow]:
    """All rows of the shipped table, by name."""
    document: Any = yaml.safe_load(_TABLE.read_text(encoding="utf-8"))
    return _Table.model_validate(document).rows


def find_row(name: str) -> PerformanceRow:
    """The row of this name.

    Raises:
        ValueError: there is none; the names there are are listed.
    """
    rows = load_rows()
    if name not in rows:
        raise ValueError(f"gpu must be one of {', '.join(sorted(rows))}; got {name!r}.")
    return rows[name]
