"""The calls about a site's instances in EC2: found by tags, ended, stopped, tagged. No memory."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cluster.backends.aws_client import Ec2CallError, Ec2Client
from cluster.backends.aws_listing import Ec2Instance, read_reservations
from cluster.backends.aws_tags import TAG_CLUSTER, TAG_SITE, to_ec2
from cluster.errors import BackendError
from cluster.model import ClusterName, SiteName

logger = logging.getLogger(__name__)

# EC2 allows 200 values in a filter.
_FILTER_VALUES_MAX = 200
_PAGE_SIZE = 500


class SiteInstances:
    """The instances that carry one cluster's and one site's tag; site None = any or none."""

    def __init__(
        self,
        client: Ec2Client,
        *,
        cluster: ClusterName,
        site: SiteName | None,
        page_size: int = _PAGE_SIZE,
    ) -> None:
        self._client = client
        self._page_size = page_size
        self._own = [{"Name": f"tag:{TAG_CLUSTER}", "Values": [cluster]}]
        if site is not None:
            self._own.append({"Name": f"tag:{TAG_SITE}", "Values": [site]})

    def describe(
        self,
        *,
        until_s: float,
        by: str | None = None,
        values: Sequence[str] = (),
    ) -> list[Ec2Instance]:
        """Return the instances, those that are gone included; `by` names a filter for `values`."""
        if by is None:
            return self._describe(self._own, until_s=until_s)
        found = []
        for chunk in _chunks(values):
            found += self._describe([*self._own, {"Name": by, "Values": chunk}], until_s=until_s)
        return found

    def end(self, instance_ids: Sequence[str], *, until_s: float) -> list[str]:
        """Return the ids of the instances whose end EC2 accepted; unknown ones count as ended.

        One bad id fails a whole call, so after a refusal they are ended one by one.

        Raises:
            BackendError: some were not accepted; the others were.
        """
        return self._for_each("terminate_instances", instance_ids, until_s=until_s)

    def stop(self, instance_ids: Sequence[str], *, until_s: float) -> list[str]:
        """Return the ids of the instances whose stop EC2 accepted. As `end`."""
        return self._for_each("stop_instances", instance_ids, until_s=until_s)

    def start(self, instance_id: str, *, until_s: float) -> None:
        """Start a stopped instance again.

        Raises:
            Ec2CallError: EC2 refused, for lack of capacity too.
        """
        self._client.call("start_instances", until_s=until_s, InstanceIds=[instance_id])

    def tag(self, instance_ids: Sequence[str], tags: Mapping[str, str], *, until_s: float) -> None:
        """Set tags and remove those whose value is empty. Idempotent.

        Raises:
            Ec2CallError: EC2 refused, for an unknown instance too.
        """
        removed = [{"Key": name} for name, text in sorted(tags.items()) if not text]
        kept = {name: text for name, text in tags.items() if text}
        ids = list(instance_ids)
        if kept:
            self._client.call("create_tags", until_s=until_s, Resources=ids, Tags=to_ec2(kept))
        if removed:
            self._client.call("delete_tags", until_s=until_s, Resources=ids, Tags=removed)

    def _describe(self, filters: list[dict[str, Any]], *, until_s: float) -> list[Ec2Instance]:
        reservations = self._client.list_all(
            "describe_instances",
            "Reservations",
            until_s=until_s,
            Filters=filters,
            MaxResults=self._page_size,
        )
        return read_reservations(reservations)

    def _for_each(
        self, operation: str, instance_ids: Sequence[str], *, until_s: float
    ) -> list[str]:
        if not instance_ids:
            return []
        try:
            self._client.call(operation, until_s=until_s, InstanceIds=list(instance_ids))
        except Ec2CallError as exc:
            logger.info("%s of %d instances: %s; one by one", operation, len(instance_ids), exc)
        else:
            return list(instance_ids)
        refusals = []
        done = []
        for instance_id in instance_ids:
            try:
                self._client.call(operation, until_s=until_s, InstanceIds=[instance_id])
            except Ec2CallError as exc:
                if not exc.is_about_unknown_instance:
                    refusals.append(f"{instance_id}: {exc}")
                    continue
            done.append(instance_id)
        if refusals:
            raise PartlyRefusedError(f"{operation}: {'; '.join(refusals)}", done=done)
        return done


class PartlyRefusedError(BackendError):
    """EC2 accepted a call for some instances (`done`) and not for others."""

    def __init__(self, message: str, *, done: Sequence[str]) -> None:
        super().__init__(message)
        self.done = list(done)


def _chunks(values: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(values), _FILTER_VALUES_MAX):
        yield list(values[start : start + _FILTER_VALUES_MAX])
