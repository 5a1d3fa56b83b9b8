"""Rules between the fields of a cluster file.

Reads the raw content, so that a mistake in one field doesn't hide the contradictions between the
others; what has the wrong type is skipped here, because the shape check reports it. What only
machines of their own need (SSH hosts, EC2) is in `config_rules_remote`.
"""

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from cluster.config_mistakes import Mistake, describe_value, suggest_name
from cluster.config_rules_remote import find_remote_contradictions
from cluster.model import LABEL_ACCELERATOR, LABEL_MARKET, LABEL_OWNED, LABEL_SITE
from cluster.raw_content import read_mapping, read_money, read_whole


def find_contradictions(raw: Mapping[str, Any]) -> Iterator[Mistake]:
    """Yield every contradiction between the fields of a cluster file."""
    yield from _check_names_agree(raw)
    for name in read_mapping(raw, "provider", "node_types"):
        yield from _check_offer(raw, name)
    for name in read_mapping(raw, "available_node_types"):
        yield from _check_labels(raw, name)
        yield from _check_counts(raw, name)
    yield from _check_head(raw)
    yield from _check_site_room(raw)
    yield from _check_money(raw)
    yield from _check_ports(raw)
    yield from find_remote_contradictions(raw)


def _check_names_agree(raw: Mapping[str, Any]) -> Iterator[Mistake]:
    offered = read_mapping(raw, "provider", "node_types")
    available = read_mapping(raw, "available_node_types")
    for name in sorted(set(available) - set(offered)):
        yield Mistake(
            f"provider.node_types.{name}",
            "say where an entry of available_node_types lives",
            "nothing",
            "Add its site, market and price.",
        )
    for name in sorted(set(offered) - set(available)):
        yield Mistake(
            f"provider.node_types.{name}",
            "be an entry of available_node_types",
            repr(name),
            suggest_name(name, list(available)),
        )


def _check_offer(raw: Mapping[str, Any], name: str) -> Iterator[Mistake]:
    offer = read_mapping(raw, "provider", "node_types", name)
    sites = read_mapping(raw, "provider", "sites")
    key = f"provider.node_types.{name}"
    site, market, price = offer.get("site"), offer.get("market"), offer.get("usd_per_hour")
    if not isinstance(site, str):
        return
    if site not in sites:
        hint = suggest_name(site, list(sites))
        yield Mistake(f"{key}.site", "name an entry of provider.sites", repr(site), hint)
        return
    owned = read_mapping(sites, site).get("owned")
    if isinstance(owned, bool) and isinstance(market, str) and owned != (market == "owned"):
        rule = "be 'owned' at an owned site" if owned else "not be 'owned' at a site that isn't"
        fix = f"provider.sites.{site}.owned is {str(owned).lower()}: change one of the two."
        yield Mistake(f"{key}.market", rule, repr(market), fix)
    if owned is False and price is None:
        rule = "be given at a site that isn't owned"
        yield Mistake(f"{key}.usd_per_hour", rule, "nothing", "An unknown price is never free.")
    if owned is True and read_money(price):
        fix = "Remove it: what is paid for already costs nothing more per hour."
        yield Mistake(f"{key}.usd_per_hour", "be absent at an owned site", str(price), fix)


def _check_labels(raw: Mapping[str, Any], name: str) -> Iterator[Mistake]:
    offer = read_mapping(raw, "provider", "node_types", name)
    labels = read_mapping(raw, "available_node_types", name, "labels")
    resources = read_mapping(raw, "available_node_types", name, "resources")
    key = f"available_node_types.{name}.labels"
    owned = read_mapping(raw, "provider", "sites", str(offer.get("site"))).get("owned")
    expected = {LABEL_SITE: offer.get("site"), LABEL_MARKET: offer.get("market")}
    if isinstance(owned, bool):
        expected[LABEL_OWNED] = str(owned).lower()
    for label, wanted in expected.items():
        if isinstance(wanted, str) and labels.get(label) != wanted:
            got = describe_value(labels.get(label))
            fix = f'Write {label}: "{wanted}", or change the provider section.'
            yield Mistake(f"{key}.{label}", f"be {wanted!r} as the provider section says", got, fix)
    if read_whole(resources.get("GPU")) > 0 and not labels.get(LABEL_ACCELERATOR):
        rule = "be given on a node type with GPUs"
        fix = "Pools are named and placed by it, for example: accelerator: l4."
        yield Mistake(f"{key}.{LABEL_ACCELERATOR}", rule, "nothing", fix)


def _check_counts(raw: Mapping[str, Any], name: str) -> Iterator[Mistake]:
    entry = read_mapping(raw, "available_node_types", name)
    least, most = entry.get("min_workers"), entry.get("max_workers")
    if isinstance(least, int) and isinstance(most, int) and least > most:
        key = f"available_node_types.{name}.min_workers"
        fix = "Lower it, or raise max_workers."
        yield Mistake(key, f"be at most max_workers ({most})", str(least), fix)


def _check_head(raw: Mapping[str, Any]) -> Iterator[Mistake]:
    head, available = raw.get("head_node_type"), read_mapping(raw, "available_node_types")
    if not isinstance(head, str):
        return
    if head not in available:
        rule = "name an entry of available_node_types"
        yield Mistake("head_node_type", rule, repr(head), suggest_name(head, list(available)))
        return
    site = str(read_mapping(raw, "provider", "node_types", head).get("site"))
    if read_mapping(raw, "provider", "sites", site).get("owned") is False:
        fix = "The entry for clients and the ledger stay on owned hardware."
        yield Mistake("head_node_type", "live at an owned site", repr(head), fix)


def _check_site_room(raw: Mapping[str, Any]) -> Iterator[Mistake]:
    needed: dict[str, int] = {}
    for name, entry in read_mapping(raw, "available_node_types").items():
        site = str(read_mapping(raw, "provider", "node_types", name).get("site"))
        least = read_whole(read_mapping(entry).get("min_workers"))
        needed[site] = needed.get(site, 0) + least + (name == raw.get("head_node_type"))
    for site, settings in read_mapping(raw, "provider", "sites").items():
        room = read_mapping(settings).get("max_nodes")
        if isinstance(room, int) and 0 < room < needed.get(site, 0):
            key = f"provider.sites.{site}.max_nodes"
            rule = f"hold the head and all min_workers there ({needed[site]})"
            yield Mistake(key, rule, str(room), "Raise it, or lower min_workers.")
    total = sum(
        read_whole(read_mapping(entry).get("min_workers"))
        for entry in read_mapping(raw, "available_node_types").values()
    )
    most = raw.get("max_workers")
    if isinstance(most, int) and most < total:
        rule = f"be at least the sum of min_workers ({total})"
        yield Mistake("max_workers", rule, str(most), "Raise it, or lower min_workers.")


def _check_money(raw: Mapping[str, Any]) -> Iterator[Mistake]:
    limit = read_money(read_mapping(raw, "provider", "limits").get("usd_per_hour"))
    kept = Decimal(0)
    for name, entry in read_mapping(raw, "available_node_types").items():
        offer = read_mapping(raw, "provider", "node_types", name)
        price = read_money(offer.get("usd_per_hour")) or Decimal(0)
        kept += price * read_whole(read_mapping(entry).get("min_workers"))
    if limit is not None and limit >= 0 and kept > limit:
        rule = f"cover the nodes kept always ({kept} $/h)"
        fix = "Raise it, or lower min_workers of the node types with a price."
        yield Mistake("provider.limits.usd_per_hour", rule, f"{limit} $/h", fix)


def _check_ports(raw: Mapping[str, Any]) -> Iterator[Mistake]:
    sites = read_mapping(raw, "provider", "sites")
    on_this_machine = [
        name for name in sites if read_mapping(sites, name, "backend").get("kind") == "process"
    ]
    ports = read_mapping(raw, "provider", "ports")
    if on_this_machine and not ports:
        rule = f"be given: nodes of {', '.join(on_this_machine)} share this machine"
        yield Mistake("provider.ports", rule, "nothing", "Copy it from cluster/local.yaml.")
    seen: dict[int, str] = {}
    for name, port in ports.items():
        if isinstance(port, int) and port in seen:
            fix = "Choose another one."
            yield Mistake(f"provider.ports.{name}", f"differ from {seen[port]}", str(port), fix)
        if isinstance(port, int):
            seen.setdefault(port, name)
