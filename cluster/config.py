"""The cluster file: an ordinary `ray up` file whose `provider` section is ours, read strictly.

`load_cluster_file` and `parse_cluster_config` return a `ClusterSettings` or raise one ConfigError
that lists every mistake. The shapes are here, rules between fields in `config_rules`, the wording
of mistakes in `config_mistakes`. Nothing here rewrites what was given or reads the environment,
except `~` in `state_dir`.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError

from cluster.backend_settings import BackendSettings
from cluster.config_mistakes import Mistake, explain_validation_errors, render_mistakes
from cluster.config_rules import find_contradictions
from cluster.errors import ConfigError
from cluster.model import ClusterName, Market, NodeTypeName, SiteName
from cluster.settings_types import Name, Port, Strict, Usd, UsdPerHour


class SiteSettings(Strict):
    """A place with nodes."""

    owned: bool = Field(description="true when the hardware is paid for already")
    max_nodes: Annotated[int, Field(ge=1, le=1000)] = Field(
        description="how many nodes the site may hold at once, the head included"
    )
    backend: BackendSettings = Field(description="how the site's nodes are started and stopped")
    round_trip_s: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="seconds from the gateways to the site and back"
    )
    egress_usd_per_gb: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="what a gigabyte costs that the site sends to the gateways"
    )


class NodeTypeOffer(Strict):
    """Where a node type lives and what one of its nodes costs."""

    site: Name = Field(description="a name from provider.sites")
    market: Market = Field(description="owned, reserved, spot or on_demand")
    usd_per_hour: UsdPerHour | None = Field(
        default=None, description="price of one node for one hour; required unless owned"
    )


class Limits(Strict):
    """What one tick and one hour may cost. Limits block launches; they never terminate."""

    launches_per_tick: Annotated[int, Field(ge=1, le=100)] = Field(
        description="how many launches one autoscaler tick may start"
    )
    usd_per_hour: UsdPerHour = Field(
        description="money committed per hour at most, launches in flight included"
    )
    usd_per_day: Usd | None = Field(
        default=None,
        description="money per UTC day at most: spent, committed to its end of lease, in flight",
    )
    usd_per_month: Usd | None = Field(
        default=None, description="money per UTC month at most, counted in the same way"
    )
    soft_ratio: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.8,
        description="share of a limit (0-1) from which status, metrics and alerts warn",
    )
    lease_s_min: Annotated[float, Field(ge=0)] = Field(
        default=600.0,
        description="seconds a launched node is counted to cost at least, for the limits above",
    )


class BurstSettings(Strict):
    """Settings of the brain, `autoscaling.replicas`."""

    mode: Literal["act", "shadow"] = Field(
        default="act",
        description="act = decisions are carried out; shadow = those that cost money are only "
        "recorded, and status says what would have happened",
    )
    history_s: Annotated[float, Field(ge=60, le=86_400)] = Field(
        default=1800.0, description="seconds of past arrivals that decisions rest on"
    )
    cold_start_s: Annotated[float, Field(gt=0)] = Field(
        default=180.0,
        description="seconds from asking for a node to its first answer, until it is learned",
    )
    waiting_per_replica_up: Annotated[int, Field(ge=1)] = Field(
        default=1,
        description="waiting requests per replica that call for one more while its speed is "
        "unknown",
    )
    up_after_s: Annotated[float, Field(ge=0)] = Field(
        default=2.0, description="seconds the call for more must last"
    )
    down_after_s: Annotated[float, Field(gt=0)] = Field(
        default=20.0, description="seconds of slack before one replica fewer"
    )
    kv_use_ratio_up: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.85, description="KV cache use (0-1) that counts as full"
    )
    min_lease_s: Annotated[float, Field(ge=0)] = Field(
        default=60.0, description="seconds a burst replica is kept once it is asked for"
    )
    signals_stale_s: Annotated[float, Field(gt=0)] = Field(
        default=10.0, description="seconds after which a gateway's signals count as unknown"
    )
    starting_s_max: Annotated[float, Field(gt=0)] = Field(
        default=300.0,
        description="seconds a replica may take to start; then its pool is asked for no more "
        "replicas, and an owned pool no longer holds the cloud closed",
    )
    slack_ratio_max: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.8,
        description="cheaper pools filled no more than this (0-1) leave a dearer one unneeded",
    )


class StoreSettings(Strict):
    """Where the ledger is. SQLite serves while every writer is on the head."""

    kind: Literal["sqlite", "postgresql"] = "sqlite"
    url_env: str | None = Field(
        default=None,
        description="environment variable that holds the PostgreSQL URL; its password never "
        "stands in this file",
    )


class PortSettings(Strict):
    """Every port of a cluster, pinned. `with_ports` moves all of them."""

    gcs: Port = Field(description="Ray's control store; workers join here")
    dashboard: Port = Field(description="Ray's dashboard and job server")
    serve: Port = Field(description="Serve's HTTP entry")
    autoscaler_metrics: Port = Field(description="metrics of the autoscaler process")
    dashboard_metrics: Port = Field(description="metrics of Ray's dashboard")
    proxy_metrics: Port = Field(description="metrics of HAProxy")
    proxy_stats: Port = Field(description="statistics page of HAProxy")
    proxy_fallback: Port = Field(description="the Python proxy behind HAProxy")
    nodes: Annotated[int, Field(ge=1024, le=65000)] = Field(
        description="first port of the nodes' own blocks (10 ports for each node)"
    )
    workers: Annotated[int, Field(ge=1024, le=64000)] | None = Field(
        default=None,
        description="first of 1,000 ports for Ray's worker processes; required on machines of "
        "their own, where firewalls want to know them",
    )


class ProviderSettings(Strict):
    """The `provider` section: what HybridNodeProvider is built from."""

    type: Literal["external"]
    module: Literal["cluster.provider.HybridNodeProvider"]
    state_dir: Annotated[str, Field(pattern=r"^[~/]")] = Field(
        description="folder of the ledger and the nodes; absolute or beginning with ~"
    )
    sites: Annotated[dict[Name, SiteSettings], Field(min_length=1)] = Field(
        description="the places with nodes"
    )
    node_types: dict[Name, NodeTypeOffer] = Field(
        description="site, market and price of every entry of available_node_types"
    )
    limits: Limits = Field(description="what one tick and one hour may cost")
    burst: BurstSettings = Field(
        default_factory=BurstSettings, description="settings of the first brain"
    )
    ports: PortSettings | None = Field(
        default=None, description="required unless every site is fake"
    )
    store: StoreSettings = Field(default_factory=StoreSettings, description="where the ledger is")


# Ray fills no defaults for external providers and fails with unrelated messages without these.
_REQUIRED_BY_RAY = "Ray fills no default here; write [] or {} where there is nothing"


class RayNodeType(Strict):
    """An entry of available_node_types, as Ray's own schema allows it."""

    resources: dict[str, Annotated[int, Field(ge=0)]] = Field(
        description="what Ray may place on one node; whole numbers"
    )
    node_config: dict[str, Any] = Field(
        description="settings for the site's backend; {} where there are none"
    )
    labels: dict[str, str] = Field(description="Ray node labels: site, market, owned, accelerator")
    min_workers: Annotated[int, Field(ge=0)] = Field(default=0, description="nodes kept always")
    max_workers: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="nodes at most"
    )
    idle_timeout_s: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="seconds a node may idle before it is released"
    )
    priority: int | None = Field(default=None, description="Ray's tie-breaker; ours decides first")
    initialization_commands: list[str] | None = None
    worker_setup_commands: list[str] | None = None
    docker: dict[str, Any] | None = None


class ClusterFile(Strict):
    """The whole file. Keys that are not ours are Ray's, with the defaults Ray leaves out."""

    cluster_name: Name = Field(description="names the cluster and marks its processes")
    provider: ProviderSettings
    head_node_type: Name = Field(description="the node type of the head")
    available_node_types: Annotated[dict[Name, RayNodeType], Field(min_length=1)]
    max_workers: Annotated[int, Field(ge=0)] = Field(description="worker nodes at most")
    auth: dict[str, Any] = Field(description=_REQUIRED_BY_RAY)
    file_mounts: dict[str, str] = Field(description=_REQUIRED_BY_RAY)
    cluster_synced_files: list[str] = Field(description=_REQUIRED_BY_RAY)
    initialization_commands: list[str] = Field(description=_REQUIRED_BY_RAY)
    setup_commands: list[str] = Field(description=_REQUIRED_BY_RAY)
    head_setup_commands: list[str] = Field(description=_REQUIRED_BY_RAY)
    worker_setup_commands: list[str] = Field(description=_REQUIRED_BY_RAY)
    head_start_ray_commands: Annotated[list[str], Field(min_length=1)] = Field(
        description="shell commands that start Ray on the head"
    )
    worker_start_ray_commands: Annotated[list[str], Field(min_length=1)] = Field(
        description="shell commands that start Ray on a worker"
    )
    upscaling_speed: Annotated[float, Field(gt=0)] | None = None
    idle_timeout_minutes: Annotated[float, Field(gt=0)] | None = None
    docker: dict[str, Any] | None = None
    file_mounts_sync_continuously: bool | None = None
    rsync_exclude: list[str] | None = None
    rsync_filter: list[str] | None = None
    metadata: dict[str, Any] | None = None
    no_restart: bool | None = None


@dataclass(frozen=True, slots=True)
class NodeTypeSettings:
    """A node type with everything both sections say about it. Owned nodes cost 0 $/h."""

    name: NodeTypeName
    site: SiteName
    market: Market
    usd_per_hour: Decimal
    resources: Mapping[str, int]
    labels: Mapping[str, str]
    min_nodes: int
    max_nodes: int


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """A cluster file without a mistake in it. `state_dir` is absolute."""

    cluster_name: ClusterName
    state_dir: Path
    head_node_type: NodeTypeName
    sites: Mapping[SiteName, SiteSettings]
    node_types: Mapping[NodeTypeName, NodeTypeSettings]
    limits: Limits
    burst: BurstSettings
    ports: PortSettings | None
    store: StoreSettings


def load_cluster_file(path: str | Path) -> ClusterSettings:
    """Return the settings in a cluster file.

    Raises:
        ConfigError: the file can't be read, or holds mistakes; all of them are listed.
    """
    return parse_cluster_config(read_cluster_file(path), file=str(path))


def read_cluster_file(path: str | Path) -> dict[str, Any]:
    """Return the file's content as YAML gives it, not yet checked.

    Raises:
        ConfigError: no such file, or not a YAML mapping.
    """
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(f"{path} must be a readable file; got: {exc.strerror}.") from exc
    except yaml.YAMLError as exc:
        raise ConfigError(f"{path} must be YAML; got a syntax error:\n{exc}") from exc
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{path} must hold a mapping of settings; got {type(raw).__name__}. "
            "Start from cluster/local.yaml."
        )
    return raw


def parse_cluster_config(
    raw: Mapping[str, Any], *, file: str = "cluster configuration"
) -> ClusterSettings:
    """Return the settings in a cluster file's content, as read or as Ray has filled it out.

    Raises:
        ConfigError: it holds mistakes; all of them are listed.
    """
    cleaned = _without_ray_private_keys(raw)
    mistakes: list[Mistake] = []
    content: ClusterFile | None = None
    try:
        content = ClusterFile.model_validate(cleaned)
    except ValidationError as exc:
        mistakes += explain_validation_errors(exc, ClusterFile)
    mistakes += find_contradictions(cleaned)
    if mistakes or content is None:
        raise ConfigError(render_mistakes(file, mistakes))
    return _build_settings(content)


def parse_provider_section(raw: Mapping[str, Any]) -> ProviderSettings:
    """Return the `provider` section alone, which is all that Ray hands to a node provider.

    Raises:
        ConfigError: it holds mistakes; all of them are listed.
    """
    try:
        return ProviderSettings.model_validate(_without_private_keys(raw))
    except ValidationError as exc:
        mistakes = list(explain_validation_errors(exc, ProviderSettings))
        raise ConfigError(render_mistakes("provider section", mistakes)) from exc


def with_ports(raw: Mapping[str, Any], offset: int) -> dict[str, Any]:
    """Return the same cluster on other ports and under another name, to run beside the first."""
    moved = copy.deepcopy(dict(raw))
    if offset == 0:
        return moved
    ports = moved["provider"].get("ports", {})
    for name in ports:
        ports[name] += offset
    moved["cluster_name"] = f"{moved['cluster_name']}-{offset}"
    return moved


def render_json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a cluster file, for editors."""
    schema = ClusterFile.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _without_ray_private_keys(raw: Mapping[str, Any]) -> dict[str, Any]:
    cleaned = dict(raw)
    if isinstance(cleaned.get("provider"), Mapping):
        cleaned["provider"] = _without_private_keys(cleaned["provider"])
    return cleaned


def _without_private_keys(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section less the keys Ray adds for itself, such as `_config_cache_path`."""
    return {key: value for key, value in raw.items() if not str(key).startswith("_")}


def _build_settings(content: ClusterFile) -> ClusterSettings:
    provider = content.provider
    return ClusterSettings(
        cluster_name=ClusterName(content.cluster_name),
        state_dir=Path(provider.state_dir).expanduser(),
        head_node_type=NodeTypeName(content.head_node_type),
        sites={SiteName(name): site for name, site in provider.sites.items()},
        node_types={
            NodeTypeName(name): _build_node_type(name, content)
            for name in content.available_node_types
        },
        limits=provider.limits,
        burst=provider.burst,
        ports=provider.ports,
        store=provider.store,
    )


def _build_node_type(name: str, content: ClusterFile) -> NodeTypeSettings:
    ray_type = content.available_node_types[name]
    offer = content.provider.node_types[name]
    max_workers = ray_type.max_workers
    if max_workers is None:
        max_workers = 0 if name == content.head_node_type else content.max_workers
    return NodeTypeSettings(
        name=NodeTypeName(name),
        site=SiteName(offer.site),
        market=offer.market,
        usd_per_hour=offer.usd_per_hour or Decimal(0),
        resources=dict(ray_type.resources),
        labels=dict(ray_type.labels),
        min_nodes=ray_type.min_workers,
        max_nodes=max_workers,
    )
