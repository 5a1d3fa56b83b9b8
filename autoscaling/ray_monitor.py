"""Ray's autoscaler v2 monitor with our scheduler in it, and the brain beside it.

Edge to Ray's private interface, checked against Ray 2.60. Ray's settings are read from the
environment at import, so Ray is imported only after they are set.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autoscaling.brain_loop import BrainLoop, Sources
from autoscaling.record import SchedulerReport
from cluster.config import ClusterSettings, load_cluster_file
from cluster.errors import ConfigError
from deployments.signals import Blackboard

_BRAIN_S = 1.0
_FAILURES_MAX = 30

_log = logging.getLogger("autoscaling")


class SettingsReader:
    """The cluster file's settings, read again when the file changes; the last good ones count."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._stamp = self._read_stamp()
        self._settings = load_cluster_file(path)

    def read(self) -> ClusterSettings:
        """Return the settings. A file that has become invalid is reported once and not used."""
        with self._lock:
            stamp = self._read_stamp()
            if stamp != self._stamp:
                self._stamp = stamp
                try:
                    self._settings = load_cluster_file(self._path)
                    _log.info("settings read again from %s", self._path)
                except ConfigError as exc:
                    _log.error("the former settings stay in force: %s", exc)
            return self._settings

    def _read_stamp(self) -> tuple[int, int]:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return (0, 0)
        return (status.st_mtime_ns, status.st_size)


def run_autoscaler(
    *, gcs_address: str, config_path: Path, logs_dir: Path, update_interval_s: int
) -> int:
    """Run until something fails that only a new process can mend; the supervisor starts one.

    Raises:
        ConfigError: the cluster file holds mistakes at the start.
    """
    reader = SettingsReader(config_path)
    ports = reader.read().ports
    os.environ.setdefault("AUTOSCALER_UPDATE_INTERVAL_S", str(update_interval_s))
    if ports is not None:
        os.environ.setdefault("AUTOSCALER_METRIC_PORT", str(ports.autoscaler_metrics))
    _set_up_logging(logs_dir)
    monitor, scheduler = _build_monitor(gcs_address, config_path, logs_dir, reader.read)
    sources = Sources(
        read_settings=reader.read,
        read_report=lambda: scheduler.last_report or SchedulerReport(),
        now_s=time.time,
    )
    brain = BrainLoop(Blackboard.from_address(gcs_address), sources)
    threading.Thread(target=_think, args=(brain,), name="brain", daemon=True).start()
    monitor.run()
    return 1


def _set_up_logging(logs_dir: Path) -> None:
    """Log to the session's `monitor.log`, in Ray's form, where `ray monitor` looks."""
    from ray._private import ray_constants  # noqa: PLC0415 - after the environment is set
    from ray._private.ray_logging import setup_component_logger  # noqa: PLC0415 - as above

    logger = setup_component_logger(
        logging_level=ray_constants.LOGGER_LEVEL,
        logging_format=ray_constants.LOGGER_FORMAT,
        log_dir=str(logs_dir),
        filename=ray_constants.MONITOR_LOG_FILE_NAME,
        max_bytes=ray_constants.LOGGING_ROTATE_BYTES,
        backup_count=ray_constants.LOGGING_ROTATE_BACKUP_COUNT,
    )
    for name in ("autoscaling", "cluster", "deployments"):
        ours = logging.getLogger(name)
        ours.setLevel(logging.INFO)
        ours.propagate = False
        for handler in logger.handlers:
            ours.addHandler(handler)


def _build_monitor(
    gcs_address: str,
    config_path: Path,
    logs_dir: Path,
    read_settings: Callable[[], ClusterSettings],
) -> tuple[Any, Any]:
    """Return Ray's monitor and our scheduler, which sits in it."""
    from ray.autoscaler.v2.instance_manager.config import FileConfigReader  # noqa: PLC0415 - as above
    from ray.autoscaler.v2.monitor import AutoscalerMonitor  # noqa: PLC0415 - as above

    from autoscaling.ray_scheduler import LocalFirstScheduler  # noqa: PLC0415 - as above

    monitor = AutoscalerMonitor(
        gcs_address,
        FileConfigReader(config_file=str(config_path), skip_content_hash=True),
        log_dir=str(logs_dir),
        monitor_ip=gcs_address.rpartition(":")[0],
    )
    scheduler = LocalFirstScheduler(read_settings, event_logger=monitor.event_logger)
    monitor.autoscaler._scheduler = scheduler  # noqa: SLF001 - Ray offers no other door
    return monitor, scheduler


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
