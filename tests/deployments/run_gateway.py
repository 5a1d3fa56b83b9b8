"""Deploys the gateway and one model on a running Ray cluster, then answers questions on stdin.

A process apart, so that the tests' own process never joins a Ray cluster. Usage:
run_gateway.py ADDRESS HTTP_PORT ARGS_JSON; one JSON object out per line in. Ends when stdin closes.
"""

import json
import sys
from typing import Any

import ray
from ray import serve

from deployments.app import build_gateway, build_model
from deployments.refusals import RequestRefusedError
from deployments.signals import Blackboard
from deployments.wire import ChatRequest, Message


def main() -> None:
    address, port, args = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    ray.init(address=address, log_to_driver=False)
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    serve.run(build_gateway(args), name="gateway", route_prefix="/")
    for model in args["models"]:
        serve.run(build_model(model), name=model["name"], route_prefix=None)
    _say("ready")
    for line in sys.stdin:
        _say(_answer(json.loads(line)))


def _say(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def _answer(question: dict[str, Any]) -> Any:
    if question["do"] == "signals":
        return [signals.gateway for signals in Blackboard.from_ray().list_signals()]
    handle = serve.get_app_handle("gateway")
    request = ChatRequest(
        model="m", messages=[Message(role="user", content="hi")], max_tokens=question["max_tokens"]
    )
    arguments = {"key": question["key"], "request": request, "data_class": question["data_class"]}
    try:
        if question["do"] == "stream":
            return list(handle.options(stream=True).chat_stream.remote(**arguments))
        reply = handle.chat.remote(**arguments).result()
    except RequestRefusedError as exc:
        return {"refused": exc.to_dict()}
    return {"body": reply.body, "headers": reply.headers}


if __name__ == "__main__":
    main()
