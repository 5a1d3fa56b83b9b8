"""Keeps LLMServer from looking for weights: ours are on the node before a replica starts.

Without this it starts a task on the node that imports vLLM once more, only to find nothing to do.
Named by its import path in the LLMConfig, so nothing imports this module but the replica.
"""

from ray.llm._internal.common.callbacks.base import CallbackBase


class LocalWeights(CallbackBase):  # type: ignore[misc]  # Ray ships no types
    """The LLMServer callback that skips the download step."""

    async def on_before_node_init(self) -> None:
        """Leave the node as it is."""
        self.ctx.run_init_node = False
