"""A node image is built once per content, and nothing is left behind when a build fails.

moto's instances install nothing: the builder's end of installation (it stops itself) and its
failures are played by the test, at the moment the build says that it waits.
"""

import hashlib
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import infra
from cluster.errors import BackendError, ConfigError
from infra.image_recipe import ImageRecipe, render_user_data
from infra.images import BuilderPlace, BuildLimits, build_image
from tests.cluster.aws_rig import REGION, ZONES, Ec2Rig

QUICK = BuildLimits(install_s=20.0, image_s=20.0, poll_s=0.05, calls_per_s=100.0)
SCRIPT = Path(infra.__file__).parent / "image" / "install.sh"


def build_recipe(ec2: Ec2Rig | None = None, **changes: Any) -> ImageRecipe:
    values: dict[str, Any] = {
        "base_image": "ami-base" if ec2 is None else ec2.image,
        "wheel_url": "https://bucket.example/tidegate-0.1.0-py3-none-any.whl?signature=s3cret",
        "wheel_sha256": "a" * 64,
        "models": ("owner/model@0123abc",),
        "driver": "nvidia-driver-580-server-open",
    }
    return ImageRecipe(**{**values, **changes})


@pytest.fixture
def place(ec2: Ec2Rig) -> BuilderPlace:
    return BuilderPlace(
        region=REGION,
        subnet=ec2.settings.subnets[ZONES[0]],
        security_groups=ec2.settings.security_groups,
        endpoint_url=ec2.faults.url,
    )


def when(words: str, act: Callable[[], object]) -> Callable[[str], None]:
    """Return a progress hook that acts when the build says the words."""

    def hook(said: str) -> None:
        if words in said:
            act()

    return hook


def finish_installation(ec2: Ec2Rig) -> None:
    for one in ec2.list_ec2():
        ec2.direct.stop_instances(InstanceIds=[one["InstanceId"]])


def list_own_images(ec2: Ec2Rig) -> list[dict[str, Any]]:
    images = ec2.direct.describe_images(Owners=["self"])["Images"]
    return [one for one in images if one["Name"].startswith("tidegate-node-")]


def is_clean(ec2: Ec2Rig) -> bool:
    return ec2.list_ec2("pending", "running", "stopping", "stopped") == []


def test_an_image_is_built_tagged_and_its_builder_ended(ec2: Ec2Rig, place: BuilderPlace) -> None:
    recipe = build_recipe(ec2)
    hook = when("installs", lambda: finish_installation(ec2))
    image = build_image(recipe, place, limits=QUICK, on_progress=hook)
    (made,) = list_own_images(ec2)
    assert (made["ImageId"], made["Name"]) == (image.image_id, f"tidegate-node-{recipe.digest}")
    assert image.is_new
    assert {"Key": "tidegate-image", "Value": recipe.digest} in made["Tags"]
    assert is_clean(ec2)
    (call,) = [one.params for one in ec2.faults.calls if one.action == "RunInstances"]
    assert call["InstanceInitiatedShutdownBehavior"] == "stop"
    assert call["MetadataOptions.HttpTokens"] == "required"
    # The cluster's tag would make it a node to adopt, or a leak to end.
    assert "tidegate-cluster" not in call.values()


def test_the_same_content_gives_the_same_image_and_starts_nothing(
    ec2: Ec2Rig, place: BuilderPlace
) -> None:
    hook = when("installs", lambda: finish_installation(ec2))
    first = build_image(build_recipe(ec2), place, limits=QUICK, on_progress=hook)
    moved = build_recipe(ec2, wheel_url="https://elsewhere.example/tidegate.whl")
    again = build_image(moved, place, limits=QUICK)
    assert (again.image_id, again.is_new) == (first.image_id, False)
    assert ec2.faults.count("RunInstances") == 1
    newer = build_recipe(ec2, wheel_sha256="b" * 64)
    other = build_image(newer, place, limits=QUICK, on_progress=hook)
    assert other.image_id != first.image_id


@pytest.mark.parametrize("words", ["installs", "installed", "is being made"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_build_leaves_nothing_behind(
    ec2: Ec2Rig, place: BuilderPlace, words: str, error: type[BaseException]
) -> None:
    def interrupt() -> None:
        raise error

    def hook(said: str) -> None:
        when(words, interrupt)(said)
        when("installs", lambda: finish_installation(ec2))(said)

    with pytest.raises(error):
        build_image(build_recipe(ec2), place, limits=QUICK, on_progress=hook)
    assert is_clean(ec2)
    assert list_own_images(ec2) == []


def test_an_image_that_does_not_get_complete_is_removed_with_its_snapshots(
    ec2: Ec2Rig, place: BuilderPlace
) -> None:
    def hook(said: str) -> None:
        when("installs", lambda: finish_installation(ec2))(said)
        refuse = {"action": "DescribeImages", "code": "Refused", "status": 400, "times": 1}
        when("is being made", lambda: ec2.faults.add("error", **refuse))(said)

    with pytest.raises(BackendError, match="Refused"):
        build_image(build_recipe(ec2), place, limits=QUICK, on_progress=hook)
    assert is_clean(ec2)
    assert list_own_images(ec2) == []
    assert ec2.faults.count("DeleteSnapshot") == 1


def test_an_installation_that_takes_too_long_fails_with_the_end_of_the_console(
    ec2: Ec2Rig, place: BuilderPlace
) -> None:
    limits = replace(QUICK, install_s=0.2)
    with pytest.raises(BackendError, match=r"must end within 0\.2 s; builder .*\n.*Linux version"):
        build_image(build_recipe(ec2), place, limits=limits)
    assert is_clean(ec2)


def test_a_builder_that_somebody_ends_fails_the_build(ec2: Ec2Rig, place: BuilderPlace) -> None:
    def end() -> None:
        for one in ec2.list_ec2():
            ec2.direct.terminate_instances(InstanceIds=[one["InstanceId"]])

    with pytest.raises(BackendError, match="it was ended"):
        build_image(build_recipe(ec2), place, limits=QUICK, on_progress=when("installs", end))


def test_a_start_whose_answer_was_lost_gives_one_builder_and_none_is_left(
    ec2: Ec2Rig, place: BuilderPlace
) -> None:
    ec2.faults.add("lose_response", action="RunInstances", times=1)
    hook = when("installs", lambda: finish_installation(ec2))
    build_image(build_recipe(ec2), place, limits=QUICK, on_progress=hook)
    assert len(ec2.list_ec2("terminated")) == 1
    assert is_clean(ec2)


def test_a_builder_of_a_build_that_was_killed_is_taken_over(
    ec2: Ec2Rig, place: BuilderPlace
) -> None:
    recipe = build_recipe(ec2)
    tags = [{"Key": "tidegate-image-builder", "Value": recipe.digest}]
    left = ec2.direct.run_instances(
        ImageId=ec2.image,
        MinCount=1,
        MaxCount=1,
        TagSpecifications=[{"ResourceType": "instance", "Tags": tags}],
    )["Instances"][0]["InstanceId"]
    hook = when(f"taking over builder {left}", lambda: finish_installation(ec2))
    assert build_image(recipe, place, limits=QUICK, on_progress=hook).is_new
    assert ec2.faults.count("RunInstances") == 0
    assert is_clean(ec2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wheel_url": "http://x/y.whl"}, "must begin with https"),
        ({"wheel_sha256": "abc"}, "must be 64 hexadecimal digits"),
        ({"models": ("owner/model",)}, "must be owner/name@revision"),
        ({"models": ("a/b@c; reboot",)}, "must be owner/name@revision"),
        ({"driver": "x y"}, "must be the name of a package"),
    ],
)
def test_a_recipe_with_a_mistake_is_refused_before_anything_starts(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_recipe(**changes)


def test_the_builders_script_is_a_shell_script_that_ec2_takes() -> None:
    text = render_user_data(build_recipe())
    checked = subprocess.run(
        ["bash", "-n"], input=text, text=True, capture_output=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")
    assert len(text.encode()) < 16384
    many = build_recipe(models=tuple(f"owner/model-{number}@{'0' * 40}" for number in range(400)))
    with pytest.raises(ConfigError, match="Name fewer models"):
        render_user_data(many)


def run_install(tmp_path: Path, *, digest: str) -> tuple[int, str]:
    """Run install.sh with stand-ins that write their arguments down; return exit code and log."""
    tools = tmp_path / "tools"
    tools.mkdir()
    log = tmp_path / "log"
    for name in ("apt-get", "python3"):
        tool = tools / name
        tool.write_text(f'#!/bin/sh\necho "{name} $@" >>{log}\n')
        tool.chmod(0o755)
    root = tmp_path / "root"
    for folder, name in (("uv/bin", "pip"), ("uv/bin", "uv"), ("venv/bin", "hf")):
        tool = root / folder / name
        tool.parent.mkdir(parents=True, exist_ok=True)
        tool.write_text(f'#!/bin/sh\necho "{name} $@" >>{log}\n')
        tool.chmod(0o755)
    (root / "venv/bin/python").symlink_to("/bin/true")
    wheel = tmp_path / "tidegate-0.1.0-py3-none-any.whl"
    wheel.write_text("content")
    environment = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "TIDEGATE_WHEEL": str(wheel),
        "TIDEGATE_WHEEL_SHA256": digest,
        "TIDEGATE_MODELS": "owner/one@abc owner/two@def",
        "TIDEGATE_DRIVER": "nvidia-driver-580-server-open",
        "TIDEGATE_ROOT": str(root),
    }
    done = subprocess.run(
        ["bash", SCRIPT], env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, log.read_text()


def test_the_installation_puts_in_driver_wheel_and_weights(tmp_path: Path) -> None:
    code, log = run_install(tmp_path, digest=hashlib.sha256(b"content").hexdigest())
    assert code == 0
    assert "nvidia-driver-580-server-open" in log
    assert "tidegate[gpu] @ file://" in log
    assert "hf download owner/one --revision abc" in log
    assert "hf download owner/two --revision def" in log


def test_a_wheel_of_another_content_is_not_installed(tmp_path: Path) -> None:
    code, log = run_install(tmp_path, digest="0" * 64)
    assert code != 0
    assert "uv" not in log.replace("python3 -m venv", "")


def test_the_container_is_made_by_the_same_script_without_a_driver() -> None:
    text = (SCRIPT.parent / "Containerfile").read_text()
    assert "infra/image/install.sh" in text
    assert 'TIDEGATE_DRIVER=""' in text
