"""The autoscaler's command: `python -m autoscaling.monitor`, started by the head's start commands.

    --supervise     start the supervisor in the background and return at once
    --stay          be the supervisor (autoscaling.supervisor)
    neither         be the autoscaler itself (autoscaling.ray_monitor)

Its command line must not hold the file name of Ray's own monitor: `ray stop` ends every process on
the machine that has it, other clusters' too. Hence `-m` and no path.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from autoscaling.settings_reader import find_copy, read_in_force
from autoscaling.supervisor import Session, Supervisor, start_detached, watch_parent

_SUPERVISOR_LOG = "monitor_supervisor.log"
_OUTPUT_LOG = "monitor.out"
_LOG_FORMAT = "%(asctime)s\t%(levelname)s %(name)s -- %(message)s"


def main(arguments: Sequence[str]) -> int:
    """Return the exit status."""
    options = _parse(arguments)
    if options.supervise:
        command = _build_command(options, "--stay")
        start_detached(command, log_path=Path(options.logs_dir) / _OUTPUT_LOG)
        return 0
    if options.stay:
        return _supervise(options)
    return _autoscale(options)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m autoscaling.monitor", description=__doc__)
    role = parser.add_mutually_exclusive_group()
    role.add_argument("--supervise", action="store_true", help="start the supervisor and return")
    role.add_argument("--stay", action="store_true", help="be the supervisor")
    parser.add_argument("--gcs-address", required=True, help="host:port, reachable from workers")
    parser.add_argument("--autoscaling-config", required=True, help="the cluster file on the head")
    parser.add_argument("--logs-dir", required=True, help="the session's log folder")
    parser.add_argument(
        "--update-interval-s", type=int, default=2, help="seconds between two scheduler ticks"
    )
    options = parser.parse_args(arguments)
    if not Path(options.logs_dir).is_dir():
        parser.error(f"--logs-dir must be a folder; got {options.logs_dir}. Has Ray started?")
    config = Path(options.autoscaling_config).expanduser()
    if not config.is_file() and not find_copy(config).is_file():
        parser.error(f"--autoscaling-config must be a file; got {config}.")
    return options


def _build_command(options: argparse.Namespace, *role: str) -> list[str]:
    return [
        *(sys.executable, "-m", "autoscaling.monitor", *role),
        *("--gcs-address", options.gcs_address),
        *("--autoscaling-config", options.autoscaling_config),
        *("--logs-dir", options.logs_dir),
        *("--update-interval-s", str(options.update_interval_s)),
    ]


def _supervise(options: argparse.Namespace) -> int:
    session = Session.find(gcs_address=options.gcs_address, logs_dir=options.logs_dir)
    logging.basicConfig(
        filename=session.logs_dir / _SUPERVISOR_LOG, level=logging.INFO, format=_LOG_FORMAT
    )
    return Supervisor(session, _build_command(options)).run()


def _autoscale(options: argparse.Namespace) -> int:
    """Be the autoscaler. It ends only by failing, or with its supervisor."""
    session = Session.find(gcs_address=options.gcs_address, logs_dir=options.logs_dir)

    def replace_supervisor() -> None:
        if session.is_current() and session.answers():
            command = _build_command(options, "--stay")
            start_detached(command, log_path=session.logs_dir / _OUTPUT_LOG)
        os._exit(1)

    watch_parent(replace_supervisor)
    config_path = Path(options.autoscaling_config).expanduser()
    os.environ.setdefault("AUTOSCALER_UPDATE_INTERVAL_S", str(options.update_interval_s))
    ports = read_in_force(config_path).settings.ports
    if ports is not None:
        os.environ.setdefault("AUTOSCALER_METRIC_PORT", str(ports.autoscaler_metrics))
    from autoscaling.ray_monitor import run_autoscaler  # noqa: PLC0415 - Ray reads these at import

    run_autoscaler(
        gcs_address=options.gcs_address, config_path=config_path, logs_dir=session.logs_dir
    )
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
