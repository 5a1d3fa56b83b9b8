"""Ray's autoscaler v2 monitor with our scheduler in it, and the brain beside it.

Edge to Ray's private interface, checked against Ray 2.60. Ray reads its settings from the
environment when it is imported, so `autoscaling.monitor` sets them before it imports this module.
"""

import logging
import os
import threading
import time
from pathlib import Path

from ray._common.ray_constants import LOGGING_ROTATE_BACKUP_COUNT, LOGGING_ROTATE_BYTES
from ray._private import ray_constants
from ray._private.ray_logging import setup_component_logger
from ray.autoscaler.v2.instance_manager.config import FileConfigReader
from ray.autoscaler.v2.monitor import AutoscalerMonitor

from autoscaling.brain_loop import BrainLoop, Sources
from autoscaling.metrics_exporter import serve_metrics
from autoscaling.ray_scheduler import LocalFirstScheduler
from autoscaling.record import SchedulerReport
from autoscaling.settings_reader import SettingsReader, read_stamp
from deployments.signals import Blackboard

_BRAIN_S = 1.0
_FAILURES_MAX = 30

_log = logging.getLogger("autoscaling")


class ConfigReader(FileConfigReader):  # type: ignore[misc] # Ray ships no types
    """Ray's reader of the cluster file, which checks it anew only when it has changed.

    Ray's own reads, checks and remarks on the file at every tick, and a file that has become
    invalid stops every tick; here the last good one counts.
    """

    def __init__(self, path: Path) -> None:
        self._stamp = read_stamp(path)
        self._file = path
        super().__init__(config_file=str(path), skip_content_hash=True)

    def refresh_cached_autoscaling_config(self) -> None:
        """Read the file again if it has changed."""
        stamp = read_stamp(self._file)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            super().refresh_cached_autoscaling_config()
        except Exception:  # noqa: BLE001 - whatever Ray's checks raise, the former file holds
            _log.exception("Ray can't use the changed cluster file; the former one stays in force")


def run_autoscaler(
    *, gcs_address: str, config_path: Path, logs_dir: Path, settings: SettingsReader
) -> None:
    """Run until something fails that only a new process can mend; the supervisor starts one."""
    _set_up_logging(logs_dir)
    monitor = AutoscalerMonitor(
        gcs_address,
        ConfigReader(config_path),
        log_dir=str(logs_dir),
        monitor_ip=gcs_address.rpartition(":")[0],
    )
    scheduler = LocalFirstScheduler(settings.read, event_logger=monitor.event_logger)
    monitor.autoscaler._scheduler = scheduler  # noqa: SLF001 - Ray offers no other door
    serve_metrics(
        monitor.metric_reporter._prom_metrics.registry,  # noqa: SLF001 - as above
        board=Blackboard.from_address(gcs_address),
        read_settings=settings.read,
    )
    sources = Sources(
        read_settings=settings.read,
        read_report=lambda: scheduler.last_report or SchedulerReport(),
        now_s=time.time,
    )
    brain = BrainLoop(Blackboard.from_address(gcs_address), sources)
    threading.Thread(target=_think, args=(brain,), name="brain", daemon=True).start()
    monitor.run()


def _set_up_logging(logs_dir: Path) -> None:
    """Log to the session's `monitor.log`, in Ray's form, where `ray monitor` looks."""
    logger = setup_component_logger(
        logging_level=ray_constants.LOGGER_LEVEL,
        logging_format=ray_constants.LOGGER_FORMAT,
        log_dir=str(logs_dir),
        filename=ray_constants.MONITOR_LOG_FILE_NAME,
        max_bytes=LOGGING_ROTATE_BYTES,
        backup_count=LOGGING_ROTATE_BACKUP_COUNT,
    )
    for name in ("autoscaling", "cluster", "deployments"):
        ours = logging.getLogger(name)
        ours.setLevel(logging.INFO)
        ours.propagate = False
        for handler in logger.handlers:
            ours.addHandler(handler)


def _think(brain: BrainLoop) -> None:
    """Tick the brain for ever. What fails once may work a second later, what fails on doesn't."""
    failures = 0
    while True:
        began_s = time.monotonic()
        wait_s = _BRAIN_S
        try:
            wait_s = min(_BRAIN_S, brain.tick().next_check_s)
            failures = 0
        except Exception:  # noqa: BLE001 - any failure may pass; too many end the process
            failures += 1
            _log.exception("the brain's tick failed (%d in a row)", failures)
            if failures >= _FAILURES_MAX:
                _log.critical("the brain fails again and again: a new process must take over")
                os._exit(1)
        time.sleep(max(0.0, wait_s - (time.monotonic() - began_s)))
