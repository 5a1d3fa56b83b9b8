"""Ray's autoscaler v2 monitor with our scheduler in it, and the brain beside it.

Edge to Ray's private interface, checked against Ray 2.60. Ray reads its settings from the
environment when it is imported, so `autoscaling.monitor` sets them before it imports this module.
"""

import copy
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ray._common.ray_constants import LOGGING_ROTATE_BACKUP_COUNT, LOGGING_ROTATE_BYTES
from ray._private import ray_constants
from ray._private.ray_logging import setup_component_logger
from ray._raylet import GcsClient  # type: ignore[attr-defined] # Ray ships no types
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig, IConfigReader
from ray.autoscaler.v2.monitor import AutoscalerMonitor
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

from autoscaling.brain_loop import BrainLoop, Sources
from autoscaling.facts_reader import FactsReader
from autoscaling.leadership import keep_in_background, wait_for_lease
from autoscaling.metrics_exporter import serve_metrics
from autoscaling.node_history_reader import NodeHistoryReader
from autoscaling.node_orders import NodeOrders
from autoscaling.ray_scheduler import LocalFirstScheduler
from autoscaling.record import SchedulerReport
from autoscaling.settings_reader import SettingsReader, find_ledger, find_outdated
from cluster.config import ClusterSettings
from cluster.errors import ConfigError
from cluster.lease import Lease
from cluster.ledger import Ledger
from cluster.owner import has_ended, open_owner
from deployments.signals import Blackboard

_BRAIN_S = 1.0
_FAILURES_MAX = 30

_log = logging.getLogger("autoscaling")


class ConfigReader(IConfigReader):  # type: ignore[misc] # Ray ships no types
    """Gives Ray the content that our settings were read from.

    Ray's own reads, checks and remarks on the file at every tick, and a file that has become
    invalid stops every tick; `read_content` returns the last good one.
    """

    def __init__(self, read_content: Callable[[], Mapping[str, Any]]) -> None:
        self._read_content = read_content
        self._content = read_content()
        self._config = build_config(self._content)

    def get_cached_autoscaling_config(self) -> AutoscalingConfig:
        """Return what Ray works with until the next refresh."""
        return self._config

    def refresh_cached_autoscaling_config(self) -> None:
        """Take over the content if it has changed."""
        content = self._read_content()
        if content is not self._content:
            self._config = build_config(content)
            self._content = content


def build_config(content: Mapping[str, Any]) -> AutoscalingConfig:
    """Return a cluster file's content as Ray's.

    Raises:
        ConfigError: Ray's own checks refuse it.
    """
    try:
        return AutoscalingConfig(copy.deepcopy(dict(content)), skip_content_hash=True)
    except Exception as exc:
        raise ConfigError(f"Ray refuses it: {exc}") from exc


def check_as_ray(content: Mapping[str, Any]) -> None:
    """Raise ConfigError if Ray's own checks refuse a cluster file's content."""
    build_config(content)


def run_autoscaler(*, gcs_address: str, config_path: Path, logs_dir: Path) -> None:
    """Run until something fails that only a new process can mend; the supervisor starts one.

    Waits, and only reads, while another process holds the lease.
    """
    _set_up_logging(logs_dir)
    settings = SettingsReader(config_path, check=check_as_ray)
    board = Blackboard.from_address(gcs_address)
    ledger = Ledger(find_ledger(settings.read()))
    lease = _take_lease(ledger, board)
    began_with = settings.read()
    monitor = AutoscalerMonitor(
        gcs_address,
        ConfigReader(settings.read_content),
        log_dir=str(logs_dir),
        monitor_ip=gcs_address.rpartition(":")[0],
    )
    monitor.autoscaler._cloud_instance_provider.v1_provider.use_lease(lease)  # noqa: SLF001 - Ray offers no other door
    sources = Sources(
        read_settings=settings.read,
        read_report=lambda: scheduler.last_report or SchedulerReport(),
        now_s=time.time,
        list_problems=lambda: () if (problem := settings.error) is None else (problem,),
        read_node_figures=NodeHistoryReader(settings.read).read,
    )
    brain = BrainLoop(board, sources)
    orders = NodeOrders(ledger, partial(_drain, gcs_address), list_serving=lambda: brain.serving)
    scheduler = LocalFirstScheduler(
        settings.read,
        read_facts=FactsReader(settings.read, lambda: brain.notices).read,
        on_report=orders.submit,
        event_logger=monitor.event_logger,
    )
    monitor.autoscaler._scheduler = scheduler  # noqa: SLF001 - as above
    serve_metrics(
        monitor.metric_reporter._prom_metrics.registry,  # noqa: SLF001 - as above
        board=Blackboard.from_address(gcs_address),
        read_settings=settings.read,
    )
    orders.start()
    follow = partial(_follow_file, settings, began_with)
    threading.Thread(target=_think, args=(brain, follow), name="brain", daemon=True).start()
    monitor.run()


def _take_lease(ledger: Ledger, board: Blackboard) -> Lease:
    """Return the lease once this process holds it; from then on it is kept, or the process ends."""
    holder = open_owner()
    lease = Lease(ledger, holder, has_ended=has_ended)

    def say_waiting() -> None:
        try:
            board.put_waiting(holder, at_s=time.time())
        except Exception as exc:  # noqa: BLE001 - a courtesy; whatever the GCS client raises
            _log.debug("the board can't be told that this process waits: %s", exc)

    wait_for_lease(lease, say_waiting=say_waiting)
    keep_in_background(lease)
    return lease


def _drain(gcs_address: str, ray_id: str, why: str) -> None:
    """Ask Ray to empty a node: Serve starts replacements first, and the raylet ends when idle."""
    preemption = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    is_accepted, refusal = GcsClient(address=gcs_address).drain_node(ray_id, preemption, why, 0)
    if not is_accepted:
        _log.warning("Ray doesn't drain %s: %s", ray_id, refusal)


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


def _follow_file(settings: SettingsReader, began_with: ClusterSettings) -> None:
    """End this process when the file says what its node provider can't learn any more.

    The supervisor starts a new one, which takes over within seconds: the ledger has all it needs.
    """
    sections = find_outdated(began_with, settings.read())
    if sections:
        changed = ", ".join(f"provider.{name}" for name in sections)
        _log.warning("%s changed in the cluster file: a new process takes over", changed)
        os._exit(0)


def _think(brain: BrainLoop, follow_file: Callable[[], None]) -> None:
    """Tick the brain for ever. What fails once may work a second later, what fails on doesn't."""
    failures = 0
    while True:
        began_s = time.monotonic()
        follow_file()
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
