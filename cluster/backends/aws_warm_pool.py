"""Instances that are kept stopped instead of ended, and started again before new ones.

The tag `tidegate-warm` is the pool's only memory, so every process sees the same pool and a crash
at any step leaves something that is found again:

    keep:   tag warm ─▶ stop        crash between: warm but running; stopped by a later look
    start:  tag as the new node ─▶ start    crash between: a stopped node; listed, ended by its
                                            site's worker, which may keep it again

A stopped instance costs its volume only. Only instances on which Ray was set up are kept.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from cluster.backend_settings import AwsBackendSettings, AwsNodeConfig
from cluster.backends.aws_client import Ec2CallError
from cluster.backends.aws_instances import SiteInstances
from cluster.backends.aws_launch import read_node_config
from cluster.backends.aws_listing import MISSES_MIN, Ec2Instance
from cluster.backends.aws_tags import TAG_WARM, UnreadableTagsError, read_spec, render_tags
from cluster.backends.sold_out import Offering
from cluster.errors import BackendError
from cluster.model import LaunchSpec, Market, NodeTypeName

logger = logging.getLogger(__name__)

_SET_UP = ("ray-node-status", "up-to-date")


class WarmPool:
    """The stopped instances of one site. Used by one thread at a time."""

    def __init__(
        self,
        instances: SiteInstances,
        *,
        settings: AwsBackendSettings,
        markets: Mapping[NodeTypeName, Market],
    ) -> None:
        self._instances = instances
        self._settings = settings
        self._markets = markets
        # How often in a row an instance was seen that is warm but runs.
        self._seen_running: dict[str, int] = {}
        self._keeps = True
        # Kept by this process: EC2 may not find them by their tag yet.
        self._kept: set[str] = set()

    def start_one(
        self, spec: LaunchSpec, config: AwsNodeConfig, offerings: Sequence[Offering], until_s: float
    ) -> Ec2Instance | None:
        """Return the instance that was started as the node; None when none could be.

        Those with another image or type than are asked for now are ended.
        """
        image = config.image or self._settings.image
        for one in self._list(spec.node_type, until_s=until_s):
            if one.state != "stopped":
                continue
            offering = next((kind for kind in offerings if _is_of(one, kind)), None)
            if one.image != image or offering is None:
                logger.info("ending warm %s: node type %s changed", one.instance_id, spec.node_type)
                self._instances.end([one.instance_id], until_s=until_s)
            elif self._start(one, spec, until_s=until_s):
                self._kept.discard(one.instance_id)
                return replace(one, state="pending", tags=render_tags(spec))
        return None

    def pick_keepers(self, ending: Sequence[Ec2Instance], until_s: float) -> dict[str, str]:
        """Return the instances that are kept instead of ended, each with its node type."""
        keepers: dict[str, str] = {}
        if not self._keeps:
            return keepers
        room: dict[str, int] = {}
        for one in ending:
            spec = self._read_keepable(one)
            if spec is None:
                continue
            if spec.node_type not in room:
                kept_max = read_node_config(spec).warm_stopped_max
                kept = len(self._list(spec.node_type, until_s=until_s)) if kept_max else 0
                room[spec.node_type] = kept_max - kept
            if room[spec.node_type] > 0:
                room[spec.node_type] -= 1
                keepers[one.instance_id] = spec.node_type
        return keepers

    def keep(self, keepers: Mapping[str, str], until_s: float) -> None:
        """Tag instances as warm, then stop them. Idempotent."""
        for instance_id, node_type in keepers.items():
            self._instances.tag([instance_id], {TAG_WARM: node_type}, until_s=until_s)
        self._kept |= keepers.keys()
        self._instances.stop(list(keepers), until_s=until_s)

    def end_all(self, until_s: float) -> None:
        """End what is kept, of every node type, and keep nothing from now on."""
        self._keeps = False
        found = self._instances.describe(until_s=until_s, by="tag-key", values=[TAG_WARM])
        kept = self._kept | {one.instance_id for one in found if not one.is_gone}
        self._instances.end(sorted(kept), until_s=until_s)
        self._kept.clear()

    def finish_stops(self, warm: Sequence[Ec2Instance], until_s: float) -> None:
        """Stop what is warm but has been running for several listings: a crash left it so.

        Not at once, because a listing may show the old tags of an instance just started again.
        """
        running = {one.instance_id for one in warm if one.state in {"pending", "running"}}
        self._seen_running = {
            instance_id: self._seen_running.get(instance_id, 0) + 1 for instance_id in running
        }
        overdue = [one for one, times in self._seen_running.items() if times >= MISSES_MIN]
        if overdue:
            logger.warning("stopping %s: kept warm, but running", ", ".join(overdue))
            self._instances.stop(overdue, until_s=until_s)

    def _list(self, node_type: NodeTypeName, *, until_s: float) -> list[Ec2Instance]:
        found = self._instances.describe(until_s=until_s, by=f"tag:{TAG_WARM}", values=[node_type])
        return sorted((one for one in found if not one.is_gone), key=lambda one: one.instance_id)

    def _start(self, one: Ec2Instance, spec: LaunchSpec, *, until_s: float) -> bool:
        wanted = render_tags(spec)
        # Names of EC2's own can't be removed, and aren't ours.
        stale = {name: "" for name in one.tags if name not in wanted and name[:4] != "aws:"}
        self._instances.tag([one.instance_id], {**stale, **wanted}, until_s=until_s)
        try:
            self._instances.start(one.instance_id, until_s=until_s)
        except Ec2CallError as exc:
            logger.info("warm %s doesn't start: %s", one.instance_id, exc)
            self._instances.tag([one.instance_id], {TAG_WARM: spec.node_type}, until_s=until_s)
            return False
        return True

    def _read_keepable(self, one: Ec2Instance) -> LaunchSpec | None:
        """Return the spec of an instance that may be kept, None for one that must be ended."""
        if one.state != "running" or one.tags.get(_SET_UP[0]) != _SET_UP[1]:
            return None
        try:
            spec = read_spec(one.tags)
            config = read_node_config(spec)
        except UnreadableTagsError:
            return None
        except BackendError as exc:
            logger.warning("ending %s: %s", one.instance_id, exc)
            return None
        is_wanted = config.warm_stopped_max > 0 and not spec.is_head
        return spec if is_wanted and self._markets.get(spec.node_type) == "on_demand" else None


def _is_of(one: Ec2Instance, offering: Offering) -> bool:
    return (one.instance_type, one.zone) == (offering.instance_type, offering.zone)
