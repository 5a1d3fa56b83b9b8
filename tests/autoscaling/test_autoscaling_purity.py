"""The decisions are pure: they import, and their tests pass, where Ray can't be imported."""

import subprocess
import sys
from pathlib import Path

_TESTS = Path(__file__).parents[1]
_DECISIONS = (
    "break_even",
    "burst",
    "capacity",
    "demand",
    "facts",
    "going_home",
    "guard",
    "history",
    "learning",
    "observation",
    "outlook",
    "owned_bounds",
    "owned_claims",
    "owned_nodes",
    "owned_places",
    "owned_split",
    "packing",
    "placement",
    "record",
    "releases",
    "replica_case",
    "replicas",
    "node_history",
    "shadow",
    "shadow_counts",
    "shadow_queue",
    "shadow_view",
    "snapshot",
    "stability",
    "wan",
    "warm",
)
_TESTED = (
    ("autoscaling", "break_even"),
    ("autoscaling", "burst"),
    ("autoscaling", "capacity"),
    ("autoscaling", "guard"),
    ("autoscaling", "history"),
    ("autoscaling", "laws"),
    ("autoscaling", "learning"),
    ("autoscaling", "observation"),
    ("autoscaling", "outlook"),
    ("autoscaling", "owned_bounds"),
    ("autoscaling", "owned_split"),
    ("autoscaling", "placement"),
    ("autoscaling", "record"),
    ("autoscaling", "releases"),
    ("autoscaling", "replicas"),
    ("autoscaling", "node_history"),
    ("autoscaling", "shadow"),
    ("cluster", "budget"),
    ("deployments", "admission"),
    ("deployments", "residency"),
    ("deployments", "routing"),
)


def _run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=_TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )


def test_decision_modules_import_neither_ray_nor_a_cloud() -> None:
    modules = ", ".join(f"autoscaling.{name}" for name in _DECISIONS)
    found = _run(
        f"import sys, {modules}; print([m for m in ('ray', 'boto3', 'vllm') if m in sys.modules])"
    )
    assert found.stdout.strip() == "[]", found.stderr


def test_the_tests_of_decisions_pass_without_ray() -> None:
    """`None` in sys.modules makes every `import ray` fail.

    All tests run, the laws with few examples: with all of them they run once already.
    """
    files = [str(_TESTS / folder / f"test_{name}.py") for folder, name in _TESTED]
    chosen = [*files, "-x", "-q", "-p", "no:cacheprovider", "--hypothesis-profile=few-examples"]
    found = _run(f"import sys, pytest; sys.modules['ray'] = None; sys.exit(pytest.main({chosen}))")
    assert found.returncode == 0, found.stdout
    assert "passed" in found.stdout
