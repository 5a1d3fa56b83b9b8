"""Builds a node image on EC2: an AMI from which a node joins without installing anything.

    look for the image ─▶ start a builder ─▶ it installs and stops itself ─▶ image ─▶ end it
          │ there                  │ one is there already
          ▼                        ▼
        done                  wait for that one

Each step is found again by tags that hold the recipe's digest, so an interrupted build is taken up
or begun anew, and building twice gives one image. Whatever happens, the builder is ended; an image
that isn't complete is removed with its snapshots.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.backends.aws_client import Ec2CallError, Ec2Client
from cluster.backends.aws_tags import to_ec2
from cluster.errors import BackendError
from infra.image_recipe import FAILED_MARK, ImageRecipe, render_user_data

TAG_DIGEST = "tidegate-image"
TAG_BUILDER = "tidegate-image-builder"

_NAME = "tidegate-node"
_CONSOLE_LINES = 15
_MISSES_MAX = 5
_DUPLICATE_NAME = "InvalidAMIName.Duplicate"


@dataclass(frozen=True, slots=True)
class BuilderPlace:
    """Where the builder runs. It needs a way to the internet, and no way in."""

    region: str
    subnet: str
    security_groups: Sequence[str]
    instance_type: str = "m7i.2xlarge"
    volume_gb: int = 200
    endpoint_url: str | None = None


@dataclass(frozen=True, slots=True)
class BuildLimits:
    """Seconds: how long installing and imaging may take each, and how often is looked.

    `calls_per_s` is how many calls EC2 is asked at most.
    """

    install_s: float = 5400.0
    image_s: float = 3600.0
    poll_s: float = 15.0
    calls_per_s: float = 2.0


@dataclass(frozen=True, slots=True)
class NodeImage:
    """A finished image. `is_new` = this call made it."""

    image_id: str
    name: str
    digest: str
    is_new: bool


def build_image(
    recipe: ImageRecipe,
    place: BuilderPlace,
    *,
    limits: BuildLimits | None = None,
    on_progress: Callable[[str], None] = lambda _: None,
) -> NodeImage:
    """Return the recipe's image, built if there is none yet. Blocks for half an hour or more.

    Raises:
        CredentialsError: AWS doesn't accept our credentials.
        BackendError: the build failed; the message holds the end of the builder's console.
    """
    limits = limits or BuildLimits()
    client = Ec2Client(
        place.region, endpoint_url=place.endpoint_url, calls_per_s=limits.calls_per_s
    )
    return _Build(client, recipe, place, limits, on_progress).run()


class _Build:
    """One build: the same client, digest and limits in every step."""

    def __init__(
        self,
        client: Ec2Client,
        recipe: ImageRecipe,
        place: BuilderPlace,
        limits: BuildLimits,
        on_progress: Callable[[str], None],
    ) -> None:
        self._client = client
        self._recipe = recipe
        self._place = place
        self._limits = limits
        self._say = on_progress
        self._digest = recipe.digest
        self._name = f"{_NAME}-{self._digest}"

    def run(self) -> NodeImage:
        found = self._find_image()
        if found is not None:
            self._say(f"image {found['ImageId']} has this content already")
            self._wait_until_available(found["ImageId"])
            return self._describe(found["ImageId"], is_new=False)
        try:
            builder = self._find_builder() or self._start_builder()
            self._wait_until_installed(builder)
            image_id = self._make_image(builder)
        finally:
            # By tag and not by id: a start whose answer was lost is ended too.
            self._end_builders()
        return self._describe(image_id, is_new=True)

    def _find_image(self) -> Mapping[str, Any] | None:
        answer = self._client.call(
            "describe_images",
            Owners=["self"],
            Filters=[
                {"Name": f"tag:{TAG_DIGEST}", "Values": [self._digest]},
                {"Name": "state", "Values": ["pending", "available"]},
            ],
        )
        return next(iter(answer.get("Images", [])), None)

    def _find_builder(self) -> str | None:
        """Return a builder that an interrupted build left; one that is too old is ended."""
        oldest_s = time.time() - self._limits.install_s
        for one in self._list_builders():
            if one["LaunchTime"].timestamp() > oldest_s:
                self._say(f"taking over builder {one['InstanceId']}")
                return str(one["InstanceId"])
        self._end_builders()
        return None

    def _start_builder(self) -> str:
        base = self._client.call("describe_images", ImageIds=[self._recipe.base_image])["Images"]
        if not base:
            raise BackendError(
                f"base image {self._recipe.base_image} must exist in {self._place.region}; it does "
                "not."
            )
        tags = to_ec2({"Name": f"{self._name}-builder", TAG_BUILDER: self._digest})
        answer = self._client.call(
            "run_instances",
            ClientToken=f"{self._digest}-{time.time_ns()}",
            MinCount=1,
            MaxCount=1,
            ImageId=self._recipe.base_image,
            InstanceType=self._place.instance_type,
            SubnetId=self._place.subnet,
            SecurityGroupIds=list(self._place.security_groups),
            InstanceInitiatedShutdownBehavior="stop",
            MetadataOptions={"HttpTokens": "required", "HttpEndpoint": "enabled"},
            UserData=render_user_data(self._recipe),
            BlockDeviceMappings=[
                {
                    "DeviceName": base[0].get("RootDeviceName") or "/dev/sda1",
                    "Ebs": {
                        "VolumeSize": self._place.volume_gb,
                        "VolumeType": "gp3",
                        "DeleteOnTermination": True,
                    },
                }
            ],
            TagSpecifications=[
                {"ResourceType": kind, "Tags": tags} for kind in ("instance", "volume")
            ],
        )
        instance_id = str(answer["Instances"][0]["InstanceId"])
        self._say(f"builder {instance_id} installs; this takes a while")
        return instance_id

    def _wait_until_installed(self, builder: str) -> None:
        deadline_s = time.monotonic() + self._limits.install_s
        misses = 0
        while True:
            state = self._read_state(builder)
            if state == "stopped":
                self._say("installed")
                return
            # EC2 may not show it at once.
            misses = misses + 1 if state is None else 0
            if misses >= _MISSES_MAX:
                raise BackendError(f"builder {builder} must live until it is done; it was ended.")
            console = self._read_console(builder)
            if FAILED_MARK in console:
                raise BackendError(f"the installation must succeed; it failed:\n{_tail(console)}")
            if time.monotonic() >= deadline_s:
                raise BackendError(
                    f"the installation must end within {self._limits.install_s:g} s; builder "
                    f"{builder} is {state}. The end of its console:\n{_tail(console)}"
                )
            time.sleep(self._limits.poll_s)

    def _make_image(self, builder: str) -> str:
        """Return the image of a stopped builder, complete; removed again if it doesn't get so."""
        tags = to_ec2(
            {"Name": self._name, TAG_DIGEST: self._digest, "base": self._recipe.base_image}
        )
        try:
            answer = self._client.call(
                "create_image",
                InstanceId=builder,
                Name=self._name,
                Description="Tidegate node: driver, Python environment, vLLM, weights",
                TagSpecifications=[{"ResourceType": "image", "Tags": tags}],
            )
        except Ec2CallError as exc:
            # Another build of the same recipe was faster, or the answer to ours was lost.
            found = self._find_image() if exc.code == _DUPLICATE_NAME else None
            if found is None:
                raise
            self._wait_until_available(found["ImageId"])
            return str(found["ImageId"])
        image_id = str(answer["ImageId"])
        try:
            self._say(f"image {image_id} is being made")
            self._wait_until_available(image_id)
            self._tag_snapshots(image_id, tags)
        except BaseException:
            self._remove_image(image_id)
            raise
        return image_id

    def _wait_until_available(self, image_id: str) -> None:
        deadline_s = time.monotonic() + self._limits.image_s
        while True:
            images = self._client.call("describe_images", ImageIds=[image_id])["Images"]
            state = images[0]["State"] if images else "gone"
            if state == "available":
                return
            if state != "pending":
                raise BackendError(f"image {image_id} must become available; it is {state}.")
            if time.monotonic() >= deadline_s:
                raise BackendError(
                    f"image {image_id} must be available within {self._limits.image_s:g} s; it is "
                    "still pending."
                )
            time.sleep(self._limits.poll_s)

    def _tag_snapshots(self, image_id: str, tags: Sequence[Mapping[str, str]]) -> None:
        """Let whoever pays for the snapshots see what they are for."""
        snapshots = self._list_snapshots(image_id)
        if snapshots:
            self._client.call("create_tags", Resources=snapshots, Tags=tags)

    def _list_snapshots(self, image_id: str) -> list[str]:
        images = self._client.call("describe_images", ImageIds=[image_id])["Images"]
        mappings = images[0].get("BlockDeviceMappings", []) if images else []
        ids = [one.get("Ebs", {}).get("SnapshotId") for one in mappings]
        return [str(snapshot) for snapshot in ids if snapshot]

    def _remove_image(self, image_id: str) -> None:
        snapshots = self._list_snapshots(image_id)
        self._client.call("deregister_image", ImageId=image_id)
        for snapshot in snapshots:
            self._client.call("delete_snapshot", SnapshotId=snapshot)
        self._say(f"image {image_id} is removed: it was not complete")

    def _end_builders(self) -> None:
        doomed = [str(one["InstanceId"]) for one in self._list_builders()]
        if doomed:
            self._client.call("terminate_instances", InstanceIds=doomed)
            self._say(f"builder {', '.join(doomed)} is ended")

    def _list_builders(self) -> list[Mapping[str, Any]]:
        reservations = self._client.list_all(
            "describe_instances",
            "Reservations",
            Filters=[
                {"Name": f"tag:{TAG_BUILDER}", "Values": [self._digest]},
                {
                    "Name": "instance-state-name",
                    "Values": ["pending", "running", "stopping", "stopped"],
                },
            ],
        )
        return [one for group in reservations for one in group["Instances"]]

    def _read_state(self, builder: str) -> str | None:
        found = [one for one in self._list_builders() if one["InstanceId"] == builder]
        return str(found[0]["State"]["Name"]) if found else None

    def _read_console(self, builder: str) -> str:
        """Return what the builder said so far; nothing where EC2 has nothing yet."""
        try:
            answer = self._client.call("get_console_output", InstanceId=builder)
        except Ec2CallError:
            return ""
        return str(answer.get("Output", ""))

    def _describe(self, image_id: str, *, is_new: bool) -> NodeImage:
        return NodeImage(image_id, self._name, self._digest, is_new=is_new)


def _tail(console: str) -> str:
    lines = console.strip().splitlines()[-_CONSOLE_LINES:]
    return "\n".join(lines) or "(empty)"
