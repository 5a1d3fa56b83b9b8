"""What EC2 said about a site's instances, and how far it is believed. Pure.

EC2's listings are eventually consistent: they may lack what was started a moment ago, repeat an
old state, or lack instances for no reason. A node that counts as gone is ended, so a mistake is
dear. The rule:

- Said to be terminated or shutting down, or its termination was accepted: gone, for good.
- Seen before and missing now: asked for once more, by its id. Still missing: listed as it was,
  marked silent, until it was missing in `MISSES_MIN` listings in a row over `settle_s` seconds.
- The first listing of a process, which has seen nothing yet, is asked for twice; what either
  answer holds is there.
- A page that can't be had is an error of the whole listing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cluster.backends.aws_tags import TAG_NODE, TAG_WARM, from_ec2, read_spec
from cluster.model import Instance, InstanceState, NodeId, read_cordon

MISSES_MIN = 3
_ENDED_KEPT_S = 7200.0

_GONE = {"shutting-down", "terminated"}
_STATES = {
    "pending": InstanceState.BOOTING,
    "running": InstanceState.RUNNING,
    "stopping": InstanceState.STOPPED,
    "stopped": InstanceState.STOPPED,
}


@dataclass(frozen=True, slots=True)
class Ec2Instance:
    """One instance as EC2 describes it. `state` is EC2's word; `launched_s` is wall time."""

    instance_id: str
    state: str
    tags: Mapping[str, str]
    instance_type: str
    zone: str
    image: str
    address: str | None
    launched_s: float | None

    @property
    def is_gone(self) -> bool:
        """Return whether it costs nothing any more and never will."""
        return self.state in _GONE

    @property
    def is_warm(self) -> bool:
        """Return whether it is kept for later and is nobody's node now."""
        return TAG_WARM in self.tags

    @property
    def node_id(self) -> NodeId | None:
        """Return the node it is, or was before it became warm."""
        return NodeId(self.tags[TAG_NODE]) if TAG_NODE in self.tags else None


def read_reservations(reservations: Sequence[Mapping[str, Any]]) -> list[Ec2Instance]:
    """Return the instances in an answer of DescribeInstances."""
    return [read_instance(raw) for one in reservations for raw in one.get("Instances", [])]


def read_instance(raw: Mapping[str, Any]) -> Ec2Instance:
    """Return an instance from EC2's description, whatever it lacks."""
    launched = raw.get("LaunchTime")
    return Ec2Instance(
        instance_id=str(raw["InstanceId"]),
        state=str(raw.get("State", {}).get("Name", "pending")),
        tags=from_ec2(raw.get("Tags", [])),
        instance_type=str(raw.get("InstanceType", "")),
        zone=str(raw.get("Placement", {}).get("AvailabilityZone", "")),
        image=str(raw.get("ImageId", "")),
        address=raw.get("PrivateIpAddress"),
        launched_s=None if launched is None else launched.timestamp(),
    )


def to_instance(found: Ec2Instance, *, is_silent: bool = False) -> Instance:
    """Return an instance in our words.

    Raises:
        UnreadableTagsError: its tags hold no spec.
    """
    spec = read_spec(found.tags)
    return Instance(
        spec=spec,
        state=_STATES.get(found.state, InstanceState.BOOTING),
        address=found.address,
        launched_s=found.launched_s,
        offering=f"{found.instance_type} in {found.zone}",
        cordon=read_cordon(spec.tags),
        is_silent=is_silent,
    )


@dataclass(frozen=True, slots=True)
class _Sighting:
    found: Ec2Instance
    misses: int = 0
    missing_since_s: float | None = None


@dataclass(frozen=True, slots=True)
class Believed:
    """An instance that counts as there. `is_silent` = the last listing lacked it."""

    found: Ec2Instance
    is_silent: bool


class Sightings:
    """What this process has seen of one site's instances. Times are monotonic."""

    def __init__(self, *, settle_s: float) -> None:
        self._settle_s = settle_s
        self._seen: dict[str, _Sighting] = {}
        self._ended_s: dict[str, float] = {}
        self.is_first = True

    def note(self, found: Ec2Instance) -> None:
        """Note an instance that EC2 told us of in another answer than a listing."""
        self._seen[found.instance_id] = _Sighting(found)

    def note_ended(self, instance_ids: Sequence[str], *, now_s: float) -> None:
        """Note that EC2 accepted their termination: listings that still hold them are old."""
        for instance_id in instance_ids:
            self._ended_s[instance_id] = now_s
            self._seen.pop(instance_id, None)

    def forget(self, instance_id: str) -> None:
        """Forget an instance that is nobody's node now; a listing brings it back as what it is."""
        self._seen.pop(instance_id, None)

    def has_ended(self, instance_id: str) -> bool:
        """Return whether this process has ended the instance or seen it gone."""
        return instance_id in self._ended_s

    def find(self, node_id: NodeId) -> list[Ec2Instance]:
        """Return the instances that were seen as this node."""
        # A copy at once: command runners ask from threads of their own.
        return [one.found for one in tuple(self._seen.values()) if one.found.node_id == node_id]

    def list_missing(self, answered: Sequence[Ec2Instance]) -> list[str]:
        """Return the ids of instances that were seen before and that an answer lacks."""
        there = {one.instance_id for one in answered}
        return [instance_id for instance_id in self._seen if instance_id not in there]

    def take_listing(self, answered: Sequence[Ec2Instance], *, now_s: float) -> list[Believed]:
        """Return the instances that count as there after a complete listing."""
        self.is_first = False
        for instance_id in self.list_missing(answered):
            self._note_missing(instance_id, now_s=now_s)
        for one in answered:
            if one.is_gone:
                self.note_ended([one.instance_id], now_s=now_s)
            elif one.instance_id not in self._ended_s:
                self._seen[one.instance_id] = _Sighting(one)
        self._forget_ended(now_s=now_s)
        return [Believed(one.found, is_silent=one.misses > 0) for one in self._seen.values()]

    def _note_missing(self, instance_id: str, *, now_s: float) -> None:
        old = self._seen[instance_id]
        since_s = now_s if old.missing_since_s is None else old.missing_since_s
        misses = old.misses + 1
        if misses >= MISSES_MIN and now_s - since_s >= self._settle_s:
            del self._seen[instance_id]
        else:
            self._seen[instance_id] = replace(old, misses=misses, missing_since_s=since_s)

    def _forget_ended(self, *, now_s: float) -> None:
        """Drop endings older than EC2 lists terminated instances (about an hour)."""
        self._ended_s = {
            instance_id: ended_s
            for instance_id, ended_s in self._ended_s.items()
            if now_s - ended_s < _ENDED_KEPT_S
        }
