"""Whether the pinned ports are open between two machines, tried with a real connection.

A listener is started on one machine over SSH and a connection made from the other. A port that is
in use already counts by who answers there. Nothing stays: the listener ends with its SSH session.
"""

import json
import shlex
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cluster.backends.ssh_access import SshTarget
from cluster.config import PortSettings
from cluster.errors import BackendError

_LISTEN_S_MAX = 120
_READY_S_MAX = 20.0
_CONNECT_S_MAX = 2.0
_ASK_S_MAX = 40.0
_NODE_PORTS = 6
_WORKER_PORTS = 1000

# Ends when its input does, which is when the SSH session is gone, and at the latest on its own.
_LISTEN = """\
import select, socket, sys
kept = []
for port in map(int, sys.argv[2:]):
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("", port))
        listener.listen(64)
        kept.append(listener)
    except OSError:
        pass
print("ready", flush=True)
select.select([sys.stdin], [], [], float(sys.argv[1]))
"""

_CONNECT = """\
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor
address, limit_s, *ports = json.loads(sys.stdin.readline())
def is_closed(port):
    try:
        socket.create_connection((address, port), timeout=limit_s).close()
    except OSError:
        return True
    return False
with ThreadPoolExecutor(16) as pool:
    print(json.dumps([p for p, closed in zip(ports, pool.map(is_closed, ports)) if closed]))
"""


def list_head_ports(ports: PortSettings) -> list[int]:
    """Return the ports of the head that workers connect to; of the workers' range, both ends."""
    return [ports.gcs, *list_node_ports(ports)]


def list_node_ports(ports: PortSettings) -> list[int]:
    """Return the ports of a node that other nodes connect to; of the workers' range, both ends."""
    own = [ports.nodes + offset for offset in range(_NODE_PORTS)]
    if ports.workers is None:
        return own
    return [*own, ports.workers, ports.workers + _WORKER_PORTS - 1]


@contextmanager
def listen_on(target: SshTarget, ports: Sequence[int]) -> Iterator[None]:
    """Listen on those ports of a machine until the block ends.

    Raises:
        BackendError: no listener came up: no way there, or no python3.
    """
    arguments = [str(_LISTEN_S_MAX), *(str(port) for port in ports)]
    remote = shlex.join(["python3", "-c", _LISTEN, *arguments])
    # A connection of its own: a shared one would live on and keep the listener.
    command = [*target.build_ssh("-T", "-o", "ControlMaster=no", "-o", "ControlPath=none"), remote]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as listener:
        try:
            _wait_until_ready(listener, target)
            yield
        finally:
            if listener.stdin is not None:
                listener.stdin.close()
            listener.terminate()


def find_closed(source: SshTarget, address: str, ports: Sequence[int]) -> list[int]:
    """Return the ports of an address that a machine can't connect to.

    Raises:
        BackendError: the machine can't be asked.
    """
    question = json.dumps([address, _CONNECT_S_MAX, *ports])
    script = f"printf '%s\\n' {shlex.quote(question)} | python3 -c {shlex.quote(_CONNECT)}"
    answer = source.run_script(script, limit_s=_ASK_S_MAX)
    closed: list[int] = json.loads(answer.strip().splitlines()[-1])
    return closed


def _wait_until_ready(listener: "subprocess.Popen[str]", target: SshTarget) -> None:
    import selectors  # noqa: PLC0415 - used nowhere else

    deadline_s = time.monotonic() + _READY_S_MAX
    with selectors.DefaultSelector() as selector:
        assert listener.stdout is not None  # noqa: S101 - asked for above
        selector.register(listener.stdout, selectors.EVENT_READ)
        while time.monotonic() < deadline_s:
            if selector.select(timeout=0.5) and "ready" in listener.stdout.readline():
                return
            if listener.poll() is not None:
                break
    listener.kill()
    said = listener.stderr.read() if listener.stderr is not None else ""
    raise BackendError(
        f"{target.login} must be able to listen for a test; got: "
        f"{said.strip().splitlines()[-1] if said.strip() else 'no answer'}. It needs python3."
    )
