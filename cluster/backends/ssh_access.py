"""How one machine is reached over SSH: the options that every ssh and rsync call shares.

They stand in a small ssh configuration file, because ssh hands a file on to the connection to a
jump host but not its options. What we don't say there comes from the user's own configuration.
Host keys are always checked. Connections are shared for a few seconds after their last use.
"""

import hashlib
import os
import shlex
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cluster.backend_settings import SshAccess, SshHost
from cluster.errors import BackendError, CredentialsError, StateError
from cluster.private_file import write_private

# Unix sockets hold 107 characters, and ssh adds 17 to this path while it creates one.
_SOCKET = "%C"
_REFUSED_EXIT = 255

_CONFIG = """\
Host *
    BatchMode yes
    IdentitiesOnly yes
    IdentityFile {key}
    UserKnownHostsFile {known_hosts}
    GlobalKnownHostsFile none
    StrictHostKeyChecking {strictness}
    UpdateHostKeys no
    HashKnownHosts no
    ConnectTimeout {connect_s}
    ServerAliveInterval 5
    ServerAliveCountMax 3
    ExitOnForwardFailure yes
    ControlMaster auto
    ControlPath {control_path}
    ControlPersist 10
    LogLevel ERROR
Include ~/.ssh/config
Include /etc/ssh/ssh_config
"""


@dataclass(frozen=True, slots=True)
class SshTarget:
    """One machine and the way to it.

    `state_dir` is the cluster's folder: keys of hosts seen for the first time are kept there.
    `host_key_alias` names the machine where its address may belong to another one tomorrow.
    """

    access: SshAccess
    address: str
    state_dir: Path
    host_key_alias: str | None = None

    @property
    def login(self) -> str:
        """Return the machine as ssh takes it."""
        return f"{self.access.user}@{self.address}"

    def locate_path(self, path: str) -> str:
        """Return a path of the machine as rsync takes it; an IPv6 address needs brackets there."""
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"{self.access.user}@{address}:{path}"

    def build_ssh(self, *options: str) -> list[str]:
        """Return an ssh command up to and with the machine; the remote command follows it."""
        return [*self._build_shared(), *options, self.login]

    def build_rsync_shell(self) -> str:
        """Return the ssh command as rsync takes it."""
        return shlex.join(self._build_shared())

    def run_script(self, script: str, *, limit_s: float) -> str:
        """Return what a POSIX shell script prints on the machine; it is handed over on stdin.

        So nothing of it shows in the process lists of either side.

        Raises:
            CredentialsError: the machine refused our key.
            BackendError: it can't be reached, the script failed, or `limit_s` passed.
        """
        command = [*self.build_ssh("-T"), "exec /bin/sh -s"]
        try:
            done = subprocess.run(
                command, input=script, capture_output=True, text=True, timeout=limit_s, check=False
            )
        except subprocess.TimeoutExpired:
            raise BackendError(
                f"{self.login} must answer within {limit_s:g} s; it did not. "
                f"Try: {shlex.join(self.build_ssh())} true"
            ) from None
        if done.returncode == _REFUSED_EXIT:
            raise self.explain_refusal(done.stderr)
        if done.returncode != 0:
            raise BackendError(
                f"a command on {self.login} must succeed; got exit code {done.returncode}: "
                f"{done.stderr.strip() or 'no message'}."
            )
        return done.stdout

    def explain_refusal(self, said: str) -> BackendError:
        """Return the error for what ssh said when there was no connection."""
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        last = lines[-1].rstrip(".") if lines else "no message"
        if "Host key verification failed" in said or "HOST IDENTIFICATION HAS CHANGED" in said:
            return BackendError(
                f"{self.login} must show the host key in {self._known_hosts}; got another or none "
                "there. If the machine was installed anew, remove its old line: "
                f"ssh-keygen -R {shlex.quote(self._known_name)} -f {self._known_hosts}"
            )
        if "Permission denied" in said:
            return CredentialsError(
                f"{self.login} must accept the key {self.access.private_key}; got: {last}. Put its "
                f"public half into ~{self.access.user}/.ssh/authorized_keys there."
            )
        return BackendError(
            f"{self.login} (port {self.access.port}) must be reachable over SSH; got: {last}. "
            f"Try: {shlex.join(self.build_ssh())} true"
        )

    def _build_shared(self) -> list[str]:
        """Return ssh with all that leads to the machine, which isn't named yet."""
        command = ["ssh", "-F", str(self._write_config()), "-p", str(self.access.port)]
        if self.access.jump:
            command += ["-J", self.access.jump]
        if self.host_key_alias:
            command += ["-o", f"HostKeyAlias={self.host_key_alias}"]
        return command

    @property
    def _known_hosts(self) -> Path:
        if self.access.known_hosts:
            return Path(self.access.known_hosts).expanduser()
        return self.state_dir / "known_hosts"

    @property
    def _known_name(self) -> str:
        if self.host_key_alias:
            return self.host_key_alias
        port = self.access.port
        return self.address if port == 22 else f"[{self.address}]:{port}"  # noqa: PLR2004 - SSH's

    def _write_config(self) -> Path:
        """Return the configuration file, written if it is missing. Its name is its content's."""
        folder = _open_socket_folder(self.state_dir)
        text = _CONFIG.format(
            key=_quote(Path(self.access.private_key).expanduser()),
            known_hosts=_quote(self._known_hosts),
            strictness="yes" if self.access.known_hosts else "accept-new",
            connect_s=max(1, round(self.access.connect_s_max)),
            control_path=folder / _SOCKET,
        )
        file = folder / f"config-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        if not file.exists():
            self.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_private(file, text)
        return file


def resolve_access(access: SshAccess, host: SshHost) -> SshAccess:
    """Return how a host is reached: what it says itself, and else what its site says."""
    own = host.model_dump(include={"user", "private_key", "port", "jump"}, exclude_none=True)
    return access.model_copy(update=own)


def locate_socket_folder(state_dir: Path) -> Path:
    """Return where a cluster's ssh configurations and sockets are: short, one for each user."""
    digest = hashlib.sha256(f"{os.geteuid()}:{state_dir}".encode()).hexdigest()[:8]
    return Path(f"/tmp/tg-ssh-{digest}")  # noqa: S108 - checked to be ours before use


def _open_socket_folder(state_dir: Path) -> Path:
    """Return the folder, created if it is missing.

    Raises:
        StateError: something else of that name is there; sockets in it wouldn't be private.
    """
    folder = locate_socket_folder(state_dir)
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise StateError(
            f"{folder} must be a folder that only this user can open; got something else. "
            "Remove it."
        )
    return folder


def _quote(path: Path) -> str:
    """Return a path as ssh's configuration takes it: `%` begins a token there."""
    return '"' + str(path).replace("%", "%%") + '"'
