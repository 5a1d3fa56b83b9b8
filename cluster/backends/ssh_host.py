"""One SSH host: what is asked of it and done to it, by the script beside this module.

The claim on the host is the truth about which node it is: it outlives the head, every cluster sees
it, and it can be created only once.
"""

import json
import secrets
import shlex
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import resources

from cluster.backends.node_environment import quote_for_shell
from cluster.backends.ssh_access import SshTarget
from cluster.errors import BackendError
from cluster.model import (
    TAG_CORDON,
    ClusterName,
    Cordon,
    LaunchSpec,
    NodeId,
    NodeTypeName,
    SiteName,
    read_cordon,
)

_STATE_S = 5.0
_CHANGE_S = 15.0
_END_S = 30.0


@dataclass(frozen=True, slots=True)
class Claim:
    """Which node a host is. `claim_id` tells this claim from any other, whatever it says."""

    spec: LaunchSpec
    host: str
    claimed_s: float
    claim_id: str

    def to_json(self) -> str:
        """Return one line; the script recognises a claim by its beginning."""
        content = {**asdict(self.spec), "host": self.host}
        content |= {"claimed_s": self.claimed_s, "claim_id": self.claim_id}
        return json.dumps(content, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Claim":
        """Return the claim in a file's content.

        Raises:
            ValueError: it isn't one.
        """
        try:
            content = json.loads(text)
            spec = LaunchSpec(
                node_id=NodeId(content["node_id"]),
                cluster=ClusterName(content["cluster"]),
                site=SiteName(content["site"]),
                node_type=NodeTypeName(content["node_type"]),
                is_head=content["is_head"],
                tags=content["tags"],
                node_config=content["node_config"],
            )
            return cls(spec, content["host"], content["claimed_s"], content["claim_id"])
        except (KeyError, TypeError) as exc:
            raise ValueError(f"a claim must name {exc}") from exc


@dataclass(frozen=True, slots=True)
class HostState:
    """What a host says of itself."""

    claim: Claim | None = None
    cordon: Cordon | None = None
    has_raylet: bool = False
    # A raylet of the claim's node was seen here, and none lives.
    lost_raylet: bool = False


@dataclass(frozen=True, slots=True)
class SshHostDoor:
    """The door to one host. Every call blocks, at most for about 40 s, and reports what is there.

    Calls raise BackendError (CredentialsError where the key isn't accepted); what was asked for
    may have been done then.
    """

    name: str
    target: SshTarget
    ray_folder: str = field(default="/tmp/ray")  # noqa: S108 - Ray's own, on the host

    def read_state(self) -> HostState:
        """Return what is there."""
        return self._call("status", limit_s=_STATE_S)

    def claim(self, spec: LaunchSpec) -> HostState:
        """Make the host a node if it is nobody's and not cordoned; see what came of it."""
        claim = Claim(spec, self.name, claimed_s=time.time(), claim_id=secrets.token_hex(8))
        return self._call("claim", claim=claim.to_json())

    def swap_claim(self, old: Claim, new: Claim) -> HostState:
        """Replace a claim if it is still the old one; see what came of it."""
        return self._call("swap", old_claim=old.to_json(), claim=new.to_json())

    def set_tags(self, claim: Claim, tags: Mapping[str, str]) -> HostState:
        """Set the tags of the node."""
        return self.swap_claim(claim, replace(claim, spec=replace(claim.spec, tags=tags)))

    def mark_cordon(self, mark: Cordon | None) -> HostState:
        """Write down what an operator wants of the host. Idempotent."""
        return self._call("cordon", mark=mark or "")

    def end_node(self, node_id: NodeId, cluster: ClusterName, *, grace_s: int) -> HostState:
        """End every process of the node, remove what it left, and its claim last. Idempotent.

        Processes are killed after `grace_s`. A claim of another node is left alone. Once begun, it
        goes on without us.
        """
        head = json.dumps({"node_id": node_id, "cluster": cluster}, separators=(",", ":"))
        return self._call(
            "end", limit_s=_END_S, node=node_id, claim=head.removesuffix("}"), grace_s=str(grace_s)
        )

    def _call(self, verb: str, *, limit_s: float = _CHANGE_S, **values: str) -> HostState:
        lines = [f"do={verb}", f"ray_tmp={quote_for_shell(self.ray_folder)}"]
        lines += [f"{name}={shlex.quote(text)}" for name, text in values.items()]
        script = "\n".join([*lines, _read_script()])
        connect_s = self.target.access.connect_s_max
        said = self.target.run_script(script, limit_s=connect_s + limit_s)
        try:
            return _parse_state(said)
        except ValueError as exc:
            raise BackendError(
                f"host {self.name} ({self.target.login}) must report its state; got: {exc}. If its "
                "claim is damaged, end what runs there and remove ~/.tidegate/claim.json."
            ) from exc


def _read_script() -> str:
    return resources.files("cluster.backends").joinpath("ssh_host.sh").read_text(encoding="utf-8")


def _parse_state(said: str) -> HostState:
    """Return what the script reported; what login files print before it is skipped.

    Raises:
        ValueError: the report is incomplete.
    """
    _, begun, report = said.partition("tidegate-host 1\n")
    lines = report.splitlines()
    if not begun or lines[-1:] != ["end"]:
        raise ValueError(f"an incomplete report {said[-200:]!r}")
    facts = dict(line.partition(" ")[::2] for line in lines[:-1])
    claim = facts.get("claim")
    return HostState(
        claim=None if claim is None else Claim.from_json(claim),
        cordon=read_cordon({TAG_CORDON: facts.get("cordon", "")}),
        has_raylet=facts.get("raylet") == "lives",
        lost_raylet=facts.get("raylet") == "died",
    )
