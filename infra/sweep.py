"""The leak sweep: instances in AWS that carry the cluster's tag and that its ledger doesn't know.

Every region of the cluster file is searched, those where nothing of ours should be too. What is
found is adopted where a site can look after it, and ended elsewhere; young instances are left
alone, because their launch may still be on its way into the ledger. Without `applies`, nothing is
changed: the report says what would be.

A closed record isn't a reason to end anything here. On the operator's machine the ledger is only a
copy, and on the head the site's own thread ends what is closed there.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from cluster.backend_settings import AwsBackendSettings
from cluster.backends.aws_client import Ec2Client
from cluster.backends.aws_instances import SiteInstances
from cluster.backends.aws_listing import Ec2Instance, to_instance
from cluster.backends.aws_tags import TAG_SITE, TAG_WARM, UnreadableTagsError, read_spec
from cluster.config import ClusterSettings
from cluster.errors import TidegateError
from cluster.ledger import Ledger
from cluster.model import LaunchSpec, NodeId, NodeTypeName, SiteName
from cluster.owner import close_owner, open_owner

GRACE_S = 600.0

Fate = Literal["keep", "adopt", "end"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One instance with the cluster's tag, and what becomes of it. `age_s` None = unknown."""

    region: str
    instance_id: str
    state: str
    site: str | None
    node_id: str | None
    instance_type: str
    age_s: float | None
    fate: Fate
    why: str


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What a sweep found. `errors` = regions that couldn't be searched or put right, and why."""

    findings: Sequence[Finding]
    errors: Mapping[str, str]
    is_applied: bool

    @property
    def leaks(self) -> Sequence[Finding]:
        """Return what isn't as it should be."""
        return [one for one in self.findings if one.fate != "keep"]

    def as_data(self) -> dict[str, Any]:
        """Return the report as JSON takes it."""
        return {
            "applied": self.is_applied,
            "findings": [asdict(one) for one in self.findings],
            "errors": dict(self.errors),
        }


@dataclass(frozen=True, slots=True)
class Known:
    """What the file and the ledger say: the decisions below rest on nothing else."""

    region_of: Mapping[SiteName, str]
    node_types: Collection[NodeTypeName]
    node_ids: Collection[NodeId]
    grace_s: float
    ends_warm: bool


def sweep(
    settings: ClusterSettings,
    ledger: Ledger,
    *,
    applies: bool = False,
    ends_warm: bool = False,
    grace_s: float = GRACE_S,
) -> SweepReport:
    """Return what was found in all regions of the file and, with `applies`, put right.

    `ends_warm` also ends the instances that are kept stopped. A region that fails is reported and
    keeps no other from being searched.
    """
    backends = _list_aws_sites(settings)
    known = Known(
        region_of={site: backend.region for site, backend in backends.items()},
        node_types=set(settings.node_types),
        node_ids={record.node_id for record in ledger.list_all()},
        grace_s=grace_s,
        ends_warm=ends_warm,
    )
    findings: list[Finding] = []
    errors: dict[str, str] = {}
    for region, client in _open_clients(backends).items():
        instances = SiteInstances(client, cluster=settings.cluster_name, site=None)
        try:
            found = _describe(instances, client)
            of_region = decide_fates(found, region=region, known=known, now_s=time.time())
            findings += of_region
            if applies:
                _apply(of_region, found, settings, ledger, instances, client)
        except TidegateError as exc:
            errors[region] = f"{type(exc).__name__}: {exc}"
    return SweepReport(findings, errors, is_applied=applies)


def decide_fates(
    found: Sequence[Ec2Instance], *, region: str, known: Known, now_s: float
) -> list[Finding]:
    """Return what becomes of one region's instances, oldest first. Pure."""
    findings: list[Finding] = []
    taken: set[NodeId] = set()
    for one in sorted(found, key=lambda each: (each.launched_s or 0.0, each.instance_id)):
        age_s = None if one.launched_s is None else now_s - one.launched_s
        fate, why = _decide(one, region=region, known=known, taken=taken)
        is_young = age_s is None or age_s < known.grace_s
        if fate != "keep" and is_young and not one.is_warm:
            fate, why = "keep", f"{why}; but it is younger than {known.grace_s:.0f} s"
        if one.node_id is not None and not one.is_warm:
            taken.add(one.node_id)
        findings.append(
            Finding(
                region=region,
                instance_id=one.instance_id,
                state=one.state,
                site=one.tags.get(TAG_SITE),
                node_id=one.node_id,
                instance_type=one.instance_type,
                age_s=None if age_s is None else round(age_s, 1),
                fate=fate,
                why=why,
            )
        )
    return findings


def _decide(
    one: Ec2Instance, *, region: str, known: Known, taken: Collection[NodeId]
) -> tuple[Fate, str]:
    site = SiteName(one.tags.get(TAG_SITE, ""))
    home = known.region_of.get(site)
    if home != region:
        where = (
            f"its site {site} is in {home}" if home else f"no site {site or 'is named by its tags'}"
        )
        return "end", f"nobody looks after it here: {where}"
    if one.is_warm:
        return _decide_warm(one, known)
    try:
        spec = read_spec(one.tags)
    except UnreadableTagsError as exc:
        return "end", f"nobody can say what it is: {exc}"
    return _decide_node(spec, known, taken)


def _decide_node(spec: LaunchSpec, known: Known, taken: Collection[NodeId]) -> tuple[Fate, str]:
    if spec.node_id in taken:
        return "end", f"node {spec.node_id} has an older instance"
    if spec.node_id in known.node_ids:
        return "keep", "known to the ledger"
    if spec.node_type not in known.node_types:
        return "end", f"node type {spec.node_type} is no longer in the cluster file"
    return "adopt", "unknown to the ledger"


def _decide_warm(one: Ec2Instance, known: Known) -> tuple[Fate, str]:
    node_type = NodeTypeName(one.tags[TAG_WARM])
    if known.ends_warm:
        return "end", f"kept stopped for {node_type}; none are wanted any more"
    if node_type not in known.node_types:
        return "end", f"kept stopped for {node_type}, which is no longer in the cluster file"
    return "keep", f"kept stopped for {node_type}"


def _apply(
    findings: Sequence[Finding],
    found: Sequence[Ec2Instance],
    settings: ClusterSettings,
    ledger: Ledger,
    instances: SiteInstances,
    client: Ec2Client,
) -> None:
    by_id = {one.instance_id: one for one in found}
    owner = open_owner()
    try:
        for finding in findings:
            if finding.fate == "adopt":
                instance = to_instance(by_id[finding.instance_id])
                price = settings.node_types[instance.spec.node_type].usd_per_hour
                ledger.adopt(instance, usd_per_hour=price, owner=owner)
    finally:
        # The site's own thread takes the adopted over.
        close_owner(owner)
    doomed = [finding.instance_id for finding in findings if finding.fate == "end"]
    instances.end(doomed, until_s=client.deadline_s())


def _list_aws_sites(settings: ClusterSettings) -> dict[SiteName, AwsBackendSettings]:
    return {
        name: site.backend
        for name, site in settings.sites.items()
        if isinstance(site.backend, AwsBackendSettings)
    }


def _open_clients(backends: Mapping[SiteName, AwsBackendSettings]) -> dict[str, Ec2Client]:
    """Return a client for each region: the sites' own, then those that are only swept.

    A site's endpoint is that of its region; other regions use the standard ones.
    """
    clients: dict[str, Ec2Client] = {}
    for backend in backends.values():
        clients[backend.region] = Ec2Client(
            backend.region, endpoint_url=backend.endpoint_url, calls_per_s=backend.calls_per_s
        )
    for backend in backends.values():
        for region in backend.sweep_regions:
            if region not in clients:
                clients[region] = Ec2Client(region, calls_per_s=backend.calls_per_s)
    return clients


def _describe(instances: SiteInstances, client: Ec2Client) -> list[Ec2Instance]:
    found = instances.describe(until_s=client.deadline_s())
    return [one for one in found if not one.is_gone]
