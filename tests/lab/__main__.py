"""`make lab`: a shell on the operator's machine; leaving it ends the lab."""

import subprocess
import sys

import yaml

from tests.lab.ec2 import REGION
from tests.lab.hybrid import HybridLab, open_hybrid_lab
from tests.lab.hybrid_files import MODEL, build_serve_file
from tests.lab.namespaces import explain_missing

_WELCOME = """
This is the operator's machine of a pretended data centre and cloud. Nothing here reaches outside.

  machines   {machines}
  EC2        {endpoint} ({region}); an instance boots within a second
  its faults curl -X POST {endpoint}/_faults -d '{{"kind": "sold_out", "market": "spot"}}'
             curl {endpoint}/_faults    curl {endpoint}/_calls    curl -X DELETE {endpoint}/_faults

Type:
  ray up -y hybrid.yaml                                  a minute or two on 2 cores
  ray rsync-up hybrid.yaml serve.yaml serve.yaml
  ray exec hybrid.yaml 'serve deploy serve.yaml'
  ray exec hybrid.yaml 'serve status'
  ray exec hybrid.yaml 'sh load.sh 12'                   12 streams for 2 minutes: the cloud opens
  ray exec hybrid.yaml 'ray status'
  ray down -y hybrid.yaml
  ssh -i ~/.ssh/tidegate_ed25519 10.77.0.21              any machine
  exit                                                   ends everything
"""
_LOAD = """\
#!/bin/sh
# Keeps $1 streamed requests going for 120 s, then prints how many each site answered.
end=$(($(date +%s) + 120))
for _ in $(seq "$1"); do
    while [ "$(date +%s)" -lt $end ]; do
        curl -s -o /dev/null -w '%header{{x-tidegate-site}} %{{http_code}}\\n' \\
            http://127.0.0.1:8000/v1/chat/completions \\
            -H "Authorization: Bearer {key}" -H "Content-Type: application/json" \\
            -d '{{"model": "{model}", "max_tokens": 30, "stream": true, "ignore_eos": true,
                 "messages": [{{"role": "user", "content": "hello"}}]}}'
    done &
done | sort | uniq -c
"""


def main() -> int:
    """Return the shell's exit code."""
    if reason := explain_missing():
        sys.stderr.write(f"{reason}\n")
        return 1
    with open_hybrid_lab() as lab:
        _prepare(lab)
        machines = ", ".join(f"{host.name} {host.address}" for host in lab.lab.hosts.values())
        sys.stdout.write(_WELCOME.format(machines=machines, endpoint=lab.faults.url, region=REGION))
        sys.stdout.flush()
        return subprocess.run(
            [*lab.operator.console(), "bash", "--norc", "-i"],
            env={**lab.operator.env, "PS1": r"operator:\w\$ "},
            check=False,
        ).returncode


def _prepare(lab: HybridLab) -> None:
    """Put what the welcome names where it says."""
    lab.operator.write("~/serve.yaml", yaml.safe_dump(build_serve_file(), sort_keys=False))
    lab.head.write("~/load.sh", _LOAD.format(key=lab.key, model=MODEL), mode=0o600)


if __name__ == "__main__":
    sys.exit(main())
