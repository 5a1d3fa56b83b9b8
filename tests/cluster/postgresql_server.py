"""A real PostgreSQL server for one test run: on loopback, in a temporary folder, gone afterwards.

It never runs as root, which PostgreSQL refuses: then it runs as the user its package made.
"""

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

_START_S_MAX = 20.0
_STOP_S_MAX = 10.0
_PACKAGE_USER = "postgres"


@dataclass(frozen=True, slots=True)
class PostgresqlServer:
    """A server that asks for a password, and logs every statement into its folder."""

    port: int
    password: str
    folder: Path

    def url(self, *, password: str | None = None) -> str:
        """Return the URL of the server's database, with its password or another."""
        return (
            f"postgresql://{_PACKAGE_USER}:{password or self.password}"
            f"@127.0.0.1:{self.port}/postgres"
        )

    def read_log(self) -> str:
        """Return what the server logged, every statement among it."""
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgresqlServer]:
    """Run a server, or skip with the reason why none can run here."""
    programs = _find_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: no initdb on PATH or in /usr/lib/postgresql")
    if os.getuid() == 0 and not _has_user(_PACKAGE_USER):
        pytest.skip(f"PostgreSQL never runs as root, and there is no user {_PACKAGE_USER}")
    with _run_server(programs) as server:
        yield server


@contextmanager
def _run_server(programs: Path) -> Iterator[PostgresqlServer]:
    folder = Path(tempfile.mkdtemp(prefix="tgpg"))
    password_file = folder / "password"
    server = PostgresqlServer(_find_free_port(), secrets.token_hex(8), folder)
    password_file.write_text(server.password)
    if os.getuid() == 0:
        for path in (folder, password_file):
            shutil.chown(path, _PACKAGE_USER)
    process: subprocess.Popen[bytes] | None = None
    try:
        _run(
            [
                *(str(programs / "initdb"), "-D", str(folder / "data"), "--no-sync"),
                *("-U", _PACKAGE_USER, "--locale=C", "--encoding=UTF8"),
                *("--auth=scram-sha-256", f"--pwfile={password_file}"),
            ]
        )
        process = _start(programs, server)
        _wait_until_open(server, process)
        yield server
    finally:
        if process is not None:
            # SIGINT is PostgreSQL's fast shutdown: it doesn't wait for clients to leave.
            process.send_signal(2)
            try:
                process.wait(_STOP_S_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _start(programs: Path, server: PostgresqlServer) -> subprocess.Popen[bytes]:
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": str(server.port),
        "unix_socket_directories": "",
        "fsync": "off",
        "log_statement": "all",
        "max_connections": "60",
    }
    command = [str(programs / "postgres"), "-D", str(server.folder / "data")]
    for name, value in settings.items():
        command += ["-c", f"{name}={value}"]
    with (server.folder / "log").open("wb") as log:
        return subprocess.Popen(
            [*_as_user(), *command], stdout=log, stderr=subprocess.STDOUT, cwd="/"
        )


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(
        [*_as_user(), *command], check=False, capture_output=True, text=True, timeout=60, cwd="/"
    )
    assert done.returncode == 0, done.stderr


def _as_user() -> list[str]:
    if os.getuid() != 0:
        return []
    user = pwd.getpwnam(_PACKAGE_USER)
    # setpriv replaces itself by the command, so the process we know is the server itself.
    # Its own end follows ours, even if a test run is killed.
    return [
        *("setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"),
        "--pdeathsig=INT",
    ]


def _wait_until_open(server: PostgresqlServer, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + _START_S_MAX
    while True:
        try:
            psycopg.connect(server.url(), connect_timeout=2).close()
        except psycopg.OperationalError:
            assert process.poll() is None, server.read_log()
            assert time.monotonic() < deadline_s, server.read_log()
            time.sleep(0.05)
        else:
            return


def _find_programs() -> Path | None:
    on_path = shutil.which("initdb")
    if on_path:
        return Path(on_path).resolve().parent
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


def _has_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _find_free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
