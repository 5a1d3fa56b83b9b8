"""What every backend promises: one site's nodes are started, listed and ended through this.

A backend is called by one worker thread of its site, one call after another, and by command
runners from other threads. Calls may block for as long as the site needs, at most a minute; they
never decide anything (limits, prices and retries are the caller's). All backends pass the same
contract suite, tests/cluster/test_backend_contract.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from cluster.model import Cordon, Instance, LaunchSpec, NodeId, SoldOut


class CommandRunner(Protocol):
    """Runs the launcher's commands on one node: Ray's CommandRunnerInterface, as far as used."""

    def run(
        self,
        cmd: str | None = None,
        timeout: int = 120,
        exit_on_fail: bool = False,  # noqa: FBT001, FBT002 - Ray's signature
        port_forward: list[tuple[int, int]] | None = None,
        with_output: bool = False,  # noqa: FBT001, FBT002 - Ray's signature
        environment_variables: Mapping[str, object] | None = None,
        **ray_options: Any,
    ) -> str:
        """Return the command's output, or nothing unless `with_output`. Blocks until it ends.

        Raises Ray's ProcessRunnerError (click's ClickException with `exit_on_fail`) when the
        command fails.
        """

    def run_rsync_up(
        self, source: str, target: str, options: Mapping[str, Any] | None = None
    ) -> None:
        """Copy a file or folder to the node. Idempotent."""

    def run_rsync_down(
        self, source: str, target: str, options: Mapping[str, Any] | None = None
    ) -> None:
        """Copy a file or folder from the node. Idempotent."""

    def remote_shell_command_str(self) -> str:
        """Return the command a person types for a shell on the node."""

    def run_init(
        self, *, as_head: bool, file_mounts: Mapping[str, str], sync_run_yet: bool
    ) -> bool | None:
        """Prepare the node before its setup commands. Idempotent."""


class NodeBackend(Protocol):
    """One site's machinery."""

    @property
    def settle_s(self) -> float:
        """Return how long after a launch the listing may still miss the instance."""

    @property
    def sold_out(self) -> Sequence[SoldOut]:
        """Return the offerings that aren't asked for now, expired ones left out. Never blocks."""

    def recall_sold_out(self, known: Sequence[SoldOut]) -> None:
        """Take over what an earlier process had learned. Called once, before anything else."""

    def launch(self, spec: LaunchSpec) -> None:
        """Start one node. Idempotent by `spec.node_id`: a second call gives no second instance.

        Returns once the site has accepted, not once the node runs.

        Raises:
            NoCapacityError: the site has none to give for `retry_s`; nothing was started.
            BackendError: anything else; whether a node was started is unknown, and the caller
                finds out by listing.
        """

    def terminate(self, node_ids: Sequence[NodeId]) -> None:
        """End nodes and everything on them. Idempotent; unknown and already gone are success.

        Returns once the site has accepted. An instance may stay listed until it is gone; the
        caller repeats the call as long as it is.

        Raises:
            BackendError: some may not have been ended; the caller retries all of them.
        """

    def list_instances(self) -> list[Instance]:
        """Return every instance of this cluster at this site, with the spec it was launched with.

        Complete or an error: a listing that may lack instances must raise, because what is missing
        counts as gone. Gone instances are not listed.

        Raises:
            BackendError: the site can't be asked right now.
        """

    def set_tags(self, node_id: NodeId, tags: Mapping[str, str]) -> None:
        """Set some of a node's tags where the site keeps them, so that another machine sees them.

        An empty value removes the tag. Unknown nodes are ignored. Idempotent.

        Raises:
            BackendError: the tags may not have been set; the caller retries.
        """

    def open_command_runner(self, node_id: NodeId) -> CommandRunner:
        """Return a runner for the node; its calls wait until the node can run commands."""


@runtime_checkable
class KeepsHosts(Protocol):
    """A backend whose machines are there already, whether a node is on them or not."""

    def cordon_host(self, name: str, mark: Cordon | None) -> None:
        """Keep with a host what an operator wants of it; None = it takes work again. Idempotent.

        Raises:
            BackendError: the host didn't take it.
        """


@runtime_checkable
class KeepsWarmPool(Protocol):
    """A backend that keeps some ended machines to start them again sooner."""

    def end_warm_pool(self) -> None:
        """End what is kept, and keep nothing from now on. Idempotent.

        Raises:
            BackendError: some may still be there; the caller retries.
        """
