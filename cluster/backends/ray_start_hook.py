"""What `ray start` can't be told by an option. Named in the nodes' RAY_START_HOOK."""

from typing import Any


def close_client_server(ray_params: Any, _is_head: object) -> None:
    """Keep Ray's client server (port 10001) from starting: nobody needs that door."""
    ray_params.ray_client_server_port = None
