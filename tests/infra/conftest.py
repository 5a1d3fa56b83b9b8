"""Fixtures of the tests of infra/."""

from tests.cluster.aws_rig import ec2, moto_url  # noqa: F401 - fixtures
