"""Starts new instances: the candidates of a node type one after another, until EC2 has one."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from cluster.backend_settings import AwsBackendSettings, AwsNodeConfig
from cluster.backends.aws_client import Ec2CallError, Ec2Client
from cluster.backends.aws_launch import build_request, build_token
from cluster.backends.aws_listing import Ec2Instance, read_instance
from cluster.backends.aws_tags import render_tags
from cluster.backends.sold_out import Offering, SoldOutCache, list_affected
from cluster.errors import BackendError, NoCapacityError
from cluster.model import LaunchSpec, SiteName

logger = logging.getLogger(__name__)

_RELAUNCHES_MAX = 5


class Launcher:
    """One site's RunInstances calls. `has_ended` tells whether we ended an instance ourselves."""

    def __init__(
        self,
        client: Ec2Client,
        *,
        settings: AwsBackendSettings,
        site: SiteName,
        sold_out: SoldOutCache,
        has_ended: Callable[[str], bool],
    ) -> None:
        self._client = client
        self._settings = settings
        self._site = site
        self._sold_out = sold_out
        self._has_ended = has_ended
        self._root_devices: dict[str, str] = {}

    def start_first(
        self,
        spec: LaunchSpec,
        config: AwsNodeConfig,
        offerings: Sequence[Offering],
        until_s: float,
    ) -> Ec2Instance:
        """Return a new instance of the first offering that EC2 has."""
        for offering in offerings:
            if self._sold_out.until_s(offering, now_s=time.time()) is not None:
                continue
            if time.monotonic() >= until_s:
                raise NoCapacityError(
                    f"EC2 in {self._settings.region} must answer sooner for {spec.node_type}: the "
                    f"time for one launch was over before {offering} was asked for.",
                    retry_s=1.0,
                )
            try:
                return self._start(spec, config, offering, until_s)
            except Ec2CallError as exc:
                if not exc.is_sold_out:
                    raise
                affected = list_affected(exc.code, offering, offerings)
                logger.warning(
                    "site %s: sold out, %s for %s",
                    self._site,
                    exc.code,
                    ", ".join(map(str, affected)),
                )
                self._sold_out.mark(affected, code=exc.code, now_s=time.time())
        raise self._explain_no_capacity(spec, offerings)

    def _start(
        self, spec: LaunchSpec, config: AwsNodeConfig, offering: Offering, until_s: float
    ) -> Ec2Instance:
        gone: list[str] = []
        for _ in range(_RELAUNCHES_MAX):
            request = build_request(
                spec,
                offering=offering,
                config=config,
                settings=self._settings,
                root_device=self._find_root_device(config.image or self._settings.image, until_s),
                token=build_token(spec.node_id, offering, after=gone),
            )
            answer = self._client.call("run_instances", until_s=until_s, **request)
            found = replace(read_instance(answer["Instances"][0]), tags=render_tags(spec))
            if not found.is_gone:
                logger.info("site %s: %s is %s", self._site, spec.node_id, found.instance_id)
                return found
            if not self._has_ended(found.instance_id):
                raise BackendError(
                    f"{spec.node_id} must run after its launch; {found.instance_id} was ended "
                    "before EC2's answer arrived. It is not launched again."
                )
            # We ended it ourselves before this launch: the node is wanted anew.
            gone.append(found.instance_id)
        raise BackendError(
            f"{spec.node_id} must not be launched more than {_RELAUNCHES_MAX} times."
        )

    def _explain_no_capacity(
        self, spec: LaunchSpec, offerings: Sequence[Offering]
    ) -> NoCapacityError:
        now_s = time.time()
        times = [self._sold_out.until_s(one, now_s=now_s) or now_s for one in offerings]
        retry_s = max(1.0, min(times) - now_s)
        codes = {
            (row.instance_type, row.zone, row.market): row.code
            for row in self._sold_out.list_rows(now_s=now_s)
        }
        described = ", ".join(
            f"{one}: {codes.get((one.instance_type, one.zone, one.market), 'asked again now')}"
            for one in offerings
        )
        return NoCapacityError(
            f"EC2 in {self._settings.region} must have a candidate of {spec.node_type}; got "
            f"{described}. Asked again in {retry_s:.0f} s; more zones or types would help.",
            retry_s=retry_s,
        )

    def _find_root_device(self, image: str, until_s: float) -> str:
        if image not in self._root_devices:
            answer: Any = self._client.call("describe_images", until_s=until_s, ImageIds=[image])
            images = answer.get("Images", [])
            if not images:
                raise BackendError(
                    f"image {image} must exist in {self._settings.region}; it does not. "
                    "Type `tidegate infra image` to build one."
                )
            self._root_devices[image] = images[0].get("RootDeviceName") or "/dev/sda1"
        return self._root_devices[image]
