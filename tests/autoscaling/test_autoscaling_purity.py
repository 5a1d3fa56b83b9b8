"""The decisions are pure: they import, and their tests pass, where Ray can't be imported."""

import subprocess
import sys
from pathlib import Path

_HERE = Path(__file__).parent
_DECISIONS = (
    "demand guard observation packing placement record replicas snapshot stability".split()  # noqa: SIM905 - reads better than nine quoted names
)


def _run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=_HERE.parents[1],
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
    """`None` in sys.modules makes every `import ray` fail."""
    files = [str(_HERE / f"test_{name}.py") for name in ("placement", "guard", "replicas")]
    chosen = [*files, "-q", "-k", "deploy or dollars or snug", "-p", "no:cacheprovider"]
    found = _run(f"import sys, pytest; sys.modules['ray'] = None; sys.exit(pytest.main({chosen}))")
    assert found.returncode == 0, found.stdout
    assert "passed" in found.stdout
