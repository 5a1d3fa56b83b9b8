"""What the way to a site costs a request: the bytes of its answer, and the time there and back.

Requests go in for nothing at the clouds there are; what comes back is paid by the byte.
"""

BYTES_PER_TOKEN = 300.0
"""About what a streamed token is on the wire: vLLM's event of some 250 bytes, and its headers."""

_BYTES_PER_GB = 1e9


def price_answer_usd(output_tokens: float, *, usd_per_gb: float) -> float:
    """Return what it costs that a site sends so many tokens home."""
    return output_tokens * BYTES_PER_TOKEN / _BYTES_PER_GB * usd_per_gb
