"""What each SSH host says about itself: reachable, versions, GPUs, clock, the token's mode."""

import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial

from cluster.backend_settings import SshBackendSettings
from cluster.backends.ssh_access import SshTarget, resolve_access
from cluster.config import ClusterSettings, PortSettings
from cluster.errors import TidegateError
from cluster.model import NodeTypeName
from infra.preflight import RAY_VERSION, Finding, Verdict
from infra.preflight_ports import find_closed, list_head_ports, list_node_ports, listen_on

_AT_ONCE = 8
_FACTS_S_MAX = 30.0
_SKEW_S_MAX = 5.0
_FREE_GIB_MIN = 10.0
_KIB_PER_GIB = 1024**2
_VENV = "/opt/tidegate/venv"

_FACTS = """\
venv={venv}
echo "rsync=$(command -v rsync)"
echo "python3=$(command -v python3)"
echo "now_s=$(date +%s)"
echo "token_mode=$(stat -c %a ~/.tidegate/auth_token 2>/dev/null)"
echo "free_kib=$(df -Pk ~ | awk 'NR==2 {{print $4}}')"
echo "gpus=$(command -v nvidia-smi >/dev/null && nvidia-smi -L | wc -l)"
echo "sudo=$(sudo -n true 2>/dev/null && echo yes)"
if [ -x "$venv/bin/python" ]; then "$venv/bin/python" -c '
import importlib.metadata as m, sys
print("python=%d.%d" % sys.version_info[:2])
for name in ("ray", "tidegate", "vllm"):
    try: print(name + "=" + m.version(name))
    except m.PackageNotFoundError: print(name + "=")
'; fi
"""


@dataclass(frozen=True, slots=True)
class HostToCheck:
    """A host of the cluster file and the way to it. `gpus` is what its node type promises."""

    name: str
    target: SshTarget
    node_type: NodeTypeName
    gpus: int
    venv: str

    @property
    def check(self) -> str:
        """How its findings are headed."""
        return f"host {self.name}"


def list_hosts(settings: ClusterSettings) -> list[HostToCheck]:
    """Return the hosts of all SSH sites, the head's first."""
    hosts = [
        HostToCheck(
            name=name,
            target=SshTarget(
                resolve_access(site.backend.ssh, host),
                host.address,
                settings.state_dir / settings.cluster_name,
            ),
            node_type=NodeTypeName(host.node_type),
            gpus=settings.node_types[NodeTypeName(host.node_type)].resources.get("GPU", 0),
            venv=site.backend.env.get("TIDEGATE_VENV", _VENV),
        )
        for site in settings.sites.values()
        if isinstance(site.backend, SshBackendSettings)
        for name, host in site.backend.hosts.items()
    ]
    return sorted(hosts, key=lambda host: host.node_type != settings.head_node_type)


def inspect_hosts(
    settings: ClusterSettings, ports: PortSettings, *, on_progress: Callable[[str], None]
) -> Iterator[Finding]:
    """Yield the findings about every host: first each alone, then each with the head.

    Hosts are asked side by side, each for a bounded time.
    """
    hosts = list_hosts(settings)
    jobs = [partial(_inspect_host, host) for host in hosts]
    findings = list(_run_all(jobs, "hosts", on_progress))
    yield from findings
    if not hosts or hosts[0].node_type != settings.head_node_type:
        return
    head = hosts[0]
    if any(finding.check == head.check and finding.verdict == "fail" for finding in findings):
        fix = f"Mend what {head.name} lacks, then run doctor again."
        yield Finding("ports", "fail", f"not tried: {head.name} isn't ready", fix)
        return
    yield from _inspect_ports(head, hosts[1:], ports, on_progress=on_progress)


def judge_facts(host: HostToCheck, facts: Mapping[str, str], *, here_s: float) -> Iterator[Finding]:
    """Yield what a host's own words mean. `here_s` is this machine's clock, wall time."""
    for tool in ("rsync", "python3"):
        if not facts.get(tool):
            fix = f"Type there: sudo apt install {tool}"
            yield Finding(host.check, "fail", f"has no {tool}", fix)
    yield from _judge_versions(host, facts)
    token_mode = facts.get("token_mode", "")
    if token_mode and int(token_mode, 8) & 0o077:
        fix = "Type there: chmod 600 ~/.tidegate/auth_token"
        yield Finding(host.check, "fail", f"others there can read the token ({token_mode})", fix)
    gpus = int(facts.get("gpus") or 0)
    if gpus < host.gpus:
        fix = f"Correct {host.node_type}'s resources, or mend the driver: nvidia-smi"
        detail = f"shows {gpus} GPUs, its node type promises {host.gpus}"
        yield Finding(host.check, "warn", detail, fix)
    skew_s = abs(float(facts.get("now_s") or here_s) - here_s)
    if skew_s > _SKEW_S_MAX:
        fix = "Let it keep time: sudo timedatectl set-ntp true"
        yield Finding(host.check, "warn", f"its clock is {skew_s:.0f} s off", fix)
    free_gib = float(facts.get("free_kib") or 0) / _KIB_PER_GIB
    if free_gib < _FREE_GIB_MIN:
        fix = "Make room in the home folder: Ray's logs and spilled objects fill disks."
        yield Finding(host.check, "warn", f"{free_gib:.1f} GiB free", fix)


def _judge_versions(host: HostToCheck, facts: Mapping[str, str]) -> Iterator[Finding]:
    ray = facts.get("ray")
    if not ray:
        fix = f"Make {host.venv} there as in docs/hybrid.md; else set-up downloads it."
        verdict: Verdict = "warn" if facts.get("sudo") else "fail"
        yield Finding(host.check, verdict, f"has no Ray in {host.venv}", fix)
        return
    if ray != RAY_VERSION:
        fix = f"Type there: {host.venv}/bin/pip install ray=={RAY_VERSION}"
        yield Finding(host.check, "fail", f"has ray {ray}; all nodes need {RAY_VERSION}", fix)
        return
    vllm = facts.get("vllm") or "none"
    detail = f"python {facts.get('python')}, ray {ray}, vllm {vllm}"
    yield Finding(host.check, "pass", detail)


def _inspect_host(host: HostToCheck) -> list[Finding]:
    try:
        said = host.target.run_script(
            _FACTS.format(venv=shlex.quote(host.venv)), limit_s=_FACTS_S_MAX
        )
    except TidegateError as error:
        return [Finding(host.check, "fail", str(error), "Mend that, then run doctor again.")]
    pairs = (line.partition("=") for line in said.splitlines())
    facts = {name: text.strip() for name, _, text in pairs}
    return list(judge_facts(host, facts, here_s=time.time()))


def _inspect_ports(
    head: HostToCheck,
    workers: list[HostToCheck],
    ports: PortSettings,
    *,
    on_progress: Callable[[str], None],
) -> Iterator[Finding]:
    """Yield whether the head and each other host reach each other on the pinned ports."""
    try:
        with listen_on(head.target, list_head_ports(ports)):
            jobs = [partial(_inspect_pair, head, host, ports) for host in workers]
            yield from _run_all(jobs, "ports", on_progress)
    except TidegateError as error:
        fix = "Mend that, then run doctor again."
        yield Finding(f"ports of {head.name}", "fail", str(error), fix)


def _inspect_pair(head: HostToCheck, host: HostToCheck, ports: PortSettings) -> list[Finding]:
    try:
        to_head = find_closed(host.target, head.target.address, list_head_ports(ports))
        with listen_on(host.target, list_node_ports(ports)):
            to_host = find_closed(head.target, host.target.address, list_node_ports(ports))
    except TidegateError as error:
        fix = "Mend that, then run doctor again."
        return [Finding(f"ports {host.name}", "fail", str(error), fix)]
    return [
        _judge_ports(host.name, head.name, head.target.address, to_head),
        _judge_ports(head.name, host.name, host.target.address, to_host),
    ]


def _judge_ports(source: str, target: str, address: str, closed: list[int]) -> Finding:
    check = f"ports {source} → {target}"
    if not closed:
        return Finding(check, "pass", "open")
    listed = ", ".join(map(str, closed))
    fix = f"Open them in the firewalls between the two, or correct {target}'s address."
    return Finding(check, "fail", f"{source} can't connect to {address} on {listed}", fix)


def _run_all(
    jobs: "list[partial[list[Finding]]]", what: str, on_progress: Callable[[str], None]
) -> Iterator[Finding]:
    """Yield the findings of all jobs in the order of the jobs, run a few at a time."""
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="doctor") as executor:
        asked = [executor.submit(job) for job in jobs]
        for number, _ in enumerate(as_completed(asked), start=1):
            on_progress(f"{what} {number} of {len(asked)}")
        for future in asked:
            yield from future.result()
