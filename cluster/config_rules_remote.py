"""Rules between the fields of a cluster file for nodes on machines of their own: SSH and EC2.

Like `config_rules` it reads the raw content and skips what has the wrong type.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

from pydantic import ValidationError

from cluster.backend_settings import AwsNodeConfig
from cluster.config_mistakes import (
    Mistake,
    describe_value,
    explain_validation_errors,
    suggest_name,
)
from cluster.raw_content import read_mapping, read_money, read_whole

TOKEN_ON_NODES = "~/.tidegate/auth_token"  # noqa: S105 - a path
"""Where every node on a machine of its own finds Ray's token; its source is a file_mount."""

_REMOTE_KINDS = ("ssh", "aws")
_PORTS_PER_NODE = 10
_WORKER_PORTS = 1000
_COPY = "Copy it from cluster/hybrid.yaml."


def find_remote_contradictions(raw: Mapping[str, Any]) -> Iterator[Mistake]:
    """Yield every contradiction that concerns SSH and AWS sites, and the store."""
    yield from _check_store(raw)
    yield from _check_money_limits(raw)
    remote = [name for kind in _REMOTE_KINDS for name in _list_sites(raw, kind)]
    if not remote:
        return
    yield from _check_ports(raw, remote)
    yield from _check_keys(raw, remote)
    yield from _check_token(raw)
    for site in _list_sites(raw, "ssh"):
        yield from _check_hosts(raw, site)
        yield from _check_set_aside(raw, site)
    yield from _check_addresses(raw)
    for node_type, site, kind in _list_types(raw):
        if kind == "ssh":
            yield from _check_host_count(raw, node_type, site)
        if kind == "aws":
            yield from _check_node_config(raw, node_type, site)


def _list_sites(raw: Mapping[str, Any], kind: str) -> list[str]:
    sites = read_mapping(raw, "provider", "sites")
    return [name for name in sites if read_mapping(sites, name, "backend").get("kind") == kind]


def _list_types(raw: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield every node type with its site and that site's kind."""
    for node_type, offer in read_mapping(raw, "provider", "node_types").items():
        site = str(read_mapping(offer).get("site"))
        kind = read_mapping(raw, "provider", "sites", site, "backend").get("kind")
        yield str(node_type), site, str(kind)


def _site_of(raw: Mapping[str, Any], node_type: str) -> object:
    return read_mapping(raw, "provider", "node_types", node_type).get("site")


def _check_store(raw: Mapping[str, Any]) -> Iterator[Mistake]:
    store = read_mapping(raw, "provider", "store")
    kind, url_env = store.get("kind", "sqlite"), store.get("url_env")
    key = "provider.store.url_env"
    if kind == "postgresql" and url_env is None:
        rule = "be given for postgresql"
        fix = "Name the variable that holds the URL, for example TIDEGATE_STORE_URL."
        yield Mistake(key, rule, "nothing", fix)
    if kind == "sqlite" and url_env is not None:
        fix = "Remove it, or write kind: postgresql."
        yield Mistake(key, "be absent for sqlite", describe_value(url_env), fix)


def _check_money_limits(raw: Mapping[str, Any]) -> Iterator[Mistake]:
    limits = read_mapping(raw, "provider", "limits")
    day, month = read_money(limits.get("usd_per_day")), read_money(limits.get("usd_per_month"))
    if day is not None and month is not None and day > month:
        rule = f"be at most usd_per_month ({month} $)"
        yield Mistake("provider.limits.usd_per_day", rule, f"{day} $", "It could never bind.")


def _check_ports(raw: Mapping[str, Any], remote: list[str]) -> Iterator[Mistake]:
    ports = read_mapping(raw, "provider", "ports")
    sites = ", ".join(remote)
    if not ports:
        rule = f"be given: firewalls between the nodes of {sites} want to know them"
        yield Mistake("provider.ports", rule, "nothing", _COPY)
        return
    if ports.get("workers") is None:
        rule = f"be given: nodes of {sites} have firewalls around them"
        yield Mistake("provider.ports.workers", rule, "nothing", "For example workers: 20000.")
    yield from _check_port_ranges(ports)


def _check_port_ranges(ports: Mapping[str, Any]) -> Iterator[Mistake]:
    widths = {"nodes": _PORTS_PER_NODE, "workers": _WORKER_PORTS}
    spans = sorted(
        (port, port + widths.get(name, 1) - 1, name)
        for name, port in ports.items()
        if isinstance(port, int) and not isinstance(port, bool)
    )
    for (first, last, name), (next_first, next_last, next_name) in combinations(spans, 2):
        # Two names for one port are reported elsewhere.
        if first < next_first <= last:
            rule = f"not overlap {name} ({first} to {last})"
            got = str(next_first) if next_first == next_last else f"{next_first} to {next_last}"
            yield Mistake(f"provider.ports.{next_name}", rule, got, "Choose another one.")


def _check_keys(raw: Mapping[str, Any], remote: list[str]) -> Iterator[Mistake]:
    """The head starts workers with the keys it has: the launcher's own, and what is mounted."""
    launchers = read_mapping(raw, "auth").get("ssh_private_key")
    if not isinstance(launchers, str):
        rule = f"be given: {', '.join(remote)} are reached by SSH"
        fix = "Ray copies this one key to the head, which starts the workers with it."
        yield Mistake("auth.ssh_private_key", rule, describe_value(launchers), fix)
        return
    known = {launchers, *read_mapping(raw, "file_mounts")}
    for key, used in _list_private_keys(raw, remote):
        if isinstance(used, str) and used not in known:
            rule = f"be auth.ssh_private_key ({launchers!r}), which Ray copies to the head"
            fix = "The head has no other key, unless file_mounts brings one, to every node then."
            yield Mistake(key, rule, repr(used), fix)


def _list_private_keys(
    raw: Mapping[str, Any], remote: list[str]
) -> Iterator[tuple[str, object | None]]:
    for site in remote:
        backend = read_mapping(raw, "provider", "sites", site, "backend")
        key = f"provider.sites.{site}.backend"
        yield f"{key}.ssh.private_key", read_mapping(backend, "ssh").get("private_key")
        for host, settings in read_mapping(backend, "hosts").items():
            yield f"{key}.hosts.{host}.private_key", read_mapping(settings).get("private_key")


def _check_token(raw: Mapping[str, Any]) -> Iterator[Mistake]:
    mounts = read_mapping(raw, "file_mounts")
    if TOKEN_ON_NODES in mounts:
        return
    state_dir = read_mapping(raw, "provider").get("state_dir")
    source = f"{state_dir}/{raw.get('cluster_name')}/auth_token"
    rule = f"hold {TOKEN_ON_NODES}, where nodes look for Ray's token"
    fix = f"Add {TOKEN_ON_NODES}: {source}"
    yield Mistake("file_mounts", rule, describe_value(mounts), f"{fix}.")


def _check_hosts(raw: Mapping[str, Any], site: str) -> Iterator[Mistake]:
    available = read_mapping(raw, "available_node_types")
    here = [name for name in available if _site_of(raw, name) == site]
    hosts = read_mapping(raw, "provider", "sites", site, "backend", "hosts")
    for host, settings in hosts.items():
        node_type = read_mapping(settings).get("node_type")
        key = f"provider.sites.{site}.backend.hosts.{host}.node_type"
        if isinstance(node_type, str) and node_type not in here:
            fix = suggest_name(node_type, here)
            if node_type in available:
                fix = f"It lives at site {_site_of(raw, node_type)}. {fix}"
            yield Mistake(key, f"name a node type of site {site}", repr(node_type), fix)


def _check_set_aside(raw: Mapping[str, Any], site: str) -> Iterator[Mistake]:
    backend = read_mapping(raw, "provider", "sites", site, "backend")
    first, most = read_money(backend.get("set_aside_s")), read_money(backend.get("set_aside_s_max"))
    if first is not None and most is not None and first > most:
        key = f"provider.sites.{site}.backend.set_aside_s"
        rule = f"be at most set_aside_s_max ({most} s)"
        yield Mistake(key, rule, f"{first} s", "It doubles from the one up to the other.")


def _check_addresses(raw: Mapping[str, Any]) -> Iterator[Mistake]:
    """Two nodes at one address would fight for the pinned ports."""
    seen: dict[str, str] = {}
    for site in _list_sites(raw, "ssh"):
        hosts = read_mapping(raw, "provider", "sites", site, "backend", "hosts")
        for host, settings in hosts.items():
            address = read_mapping(settings).get("address")
            if not isinstance(address, str):
                continue
            if address in seen:
                key = f"provider.sites.{site}.backend.hosts.{host}.address"
                fix = "A machine is one node: the ports are the same on each."
                yield Mistake(key, f"differ from that of {seen[address]}", repr(address), fix)
            seen.setdefault(address, host)


def _check_host_count(raw: Mapping[str, Any], node_type: str, site: str) -> Iterator[Mistake]:
    entry = read_mapping(raw, "available_node_types", node_type)
    hosts = read_mapping(raw, "provider", "sites", site, "backend", "hosts")
    count = Counter(read_mapping(host).get("node_type") for host in hosts.values())[node_type]
    key = f"available_node_types.{node_type}"
    plural = f"{count} host" + ("" if count == 1 else "s")
    is_head = raw.get("head_node_type") == node_type
    if is_head and count == 0:
        rule = f"have a host at site {site}: it is the head's"
        fix = f"Add one with node_type: {node_type} to provider.sites.{site}.backend.hosts."
        yield Mistake(key, rule, "none", fix)
        return
    least, most = read_whole(entry.get("min_workers")), entry.get("max_workers")
    room = count - is_head
    rule = f"be at most {room} ({plural} of this type)"
    if least > room:
        fix = "Lower it, or add hosts."
        yield Mistake(f"{key}.min_workers", rule, str(least), fix)
    if most is None and not is_head:
        fix = f"Write max_workers: {count}."
        yield Mistake(f"{key}.max_workers", f"be given at an ssh site ({plural})", "nothing", fix)
    if read_whole(most) > room:
        fix = "Lower it, or add hosts: more would be planned than there is."
        yield Mistake(f"{key}.max_workers", rule, str(most), fix)


def _check_node_config(raw: Mapping[str, Any], node_type: str, site: str) -> Iterator[Mistake]:
    key = f"available_node_types.{node_type}.node_config"
    content = read_mapping(raw, "available_node_types", node_type).get("node_config")
    if not isinstance(content, Mapping):
        return
    try:
        AwsNodeConfig.model_validate(dict(content))
    except ValidationError as exc:
        for mistake in explain_validation_errors(exc, AwsNodeConfig):
            yield replace(mistake, key=f"{key}.{mistake.key}")
    yield from _check_zones(raw, key, content.get("zones"), site)
    market = read_mapping(raw, "provider", "node_types", node_type).get("market")
    warm = read_whole(content.get("warm_stopped_max"))
    if warm > 0 and market == "spot":
        fix = "AWS ends or stops spot instances as it likes. Remove it."
        yield Mistake(f"{key}.warm_stopped_max", "be 0 on the spot market", str(warm), fix)


def _check_zones(raw: Mapping[str, Any], key: str, zones: object, site: str) -> Iterator[Mistake]:
    subnets = read_mapping(raw, "provider", "sites", site, "backend", "subnets")
    for zone in zones if isinstance(zones, list) else ():
        if isinstance(zone, str) and zone not in subnets:
            rule = f"name zones of provider.sites.{site}.backend.subnets"
            yield Mistake(f"{key}.zones", rule, repr(zone), suggest_name(zone, list(subnets)))
