"""Hosts of their own on one machine: each has its own network, processes, mounts, /dev/shm, host name and sshd.

A desk, from which an operator works, and any number of hosts hang on one bridge. Nothing of it is visible outside:
the namespaces have no names and end with the process that made them.

    10.77.0.1 desk (bridge `wire`) --- p2: 10.77.0.2 head --- p3: 10.77.0.3 north --- p4: 10.77.0.4 south
"""

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

NETWORK = "10.77.0"
REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAMS = ("ip", "unshare", "nsenter", "mount")
SSH_PROGRAMS = ("ssh", "ssh-keygen", "sshd", "rsync")
WALL_PROGRAMS = ("nft", "setpriv")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SHM_BYTES = 256 << 20


def reason_to_skip(programs: Sequence[str] = SSH_PROGRAMS) -> str:
    """Return why this machine cannot have a lab whose hosts need these programs, too, or an empty text."""
    if os.geteuid() != 0:
        return "the lab makes network namespaces, which needs root"
    missing = [name for name in (*PROGRAMS, *programs) if shutil.which(name, path=SYSTEM_PATH) is None]
    if missing:
        packages = "openssh-server rsync iproute2 nftables util-linux"
        return f"the lab needs {', '.join(missing)} (Debian: apt-get install {packages})"
    # What a container often forbids: a mount of its own, and a bridge.
    tried = "mount -t tmpfs none /srv && ip link add wire type bridge"
    done = subprocess.run(["unshare", *NAMESPACES, "sh", "-c", tried], capture_output=True, text=True, check=False)
    return f"namespaces are not allowed here: {done.stderr.strip()}" if done.returncode else ""


WALL = """table inet wall {{
  chain input {{
    type filter hook input priority 0; policy drop
    iif lo accept
    ip saddr {address} tcp sport {port} tcp flags & (syn|ack) != syn accept
  }}
  chain output {{
    type filter hook output priority 0; policy drop
    oif lo accept
    ip daddr {address} tcp dport {port} accept
  }}
}}
"""
ACCOUNTS = {"owner": 5001, "raysvc": 5002}
"""Accounts of every host beside root, by their numbers: who owns the data, and who runs services for everybody."""
NAMESPACES = ("--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc")


@dataclass(frozen=True)
class Host:
    """One machine of the lab."""

    name: str
    address: str
    process: subprocess.Popen[str]
    init: int
    """Number of the host's first process, as seen from outside."""

    def command(self, text: str, account: str = "root") -> list[str]:
        """Return the command that runs `text` in a login shell of an account on the host."""
        entering = ["nsenter", "--target", str(self.init), "--mount", "--net", "--pid", "--uts", "--ipc"]
        home, becoming = "/root", []
        if account != "root":
            number = str(ACCOUNTS[account])
            home, becoming = f"/home/{account}", ["setpriv", "--reuid", number, "--regid", number, "--clear-groups"]
        clean = ["env", "-i", f"HOME={home}", f"USER={account}", "TERM=dumb", "LANG=C.UTF-8", f"PATH={SYSTEM_PATH}"]
        return [*entering, *becoming, *clean, "bash", "-c", f"cd; . ./.bashrc; {text}"]

    def run(
        self, text: str, timeout: float = 120.0, check: bool = True, account: str = "root"
    ) -> subprocess.CompletedProcess[str]:
        """Run a command; AssertionError with all it said when it must succeed and does not."""
        options = {"capture_output": True, "text": True, "timeout": timeout, "check": False}
        done = subprocess.run(self.command(text, account), stdin=subprocess.DEVNULL, **options)
        assert not check or done.returncode == 0, f"{self.name}: {text}\n{done.stdout}{done.stderr}"
        return done

    def start(self, text: str, log: TextIO | int, account: str = "root") -> subprocess.Popen[str]:
        """Start a command and do not wait for it."""
        return subprocess.Popen(
            self.command(text, account), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, text=True
        )

    def path(self, inside: str) -> Path:
        """Return the path, seen from outside, of a file on the host's own disk."""
        return Path(f"/proc/{self.init}/root") / inside.lstrip("/")

    def write(self, inside: str, content: str | bytes) -> None:
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    def give(self, inside: str, account: str, mode: int = 0o600) -> None:
        """Make a file an account's own."""
        path = self.path(inside)
        path.chmod(mode)
        os.chown(path, ACCOUNTS[account], ACCOUNTS[account])

    def lets_out_to(self, address: str, port: int) -> None:
        """Set up the host's firewall: it may dial one port of one other host; nobody may dial it."""
        command = ["nsenter", "--target", str(self.init), "--net", "nft", "-f", "-"]
        rules = WALL.format(address=address, port=port)
        done = subprocess.run(command, input=rules, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def processes(self, word: str) -> list[int]:
        """Return the host's processes with the word in their command line, by their number on the host."""
        found = []
        for folder in self.path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it may have ended meanwhile
                if word in (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"):
                    found.append(int(folder.name))
        return found


@dataclass(frozen=True)
class Lab:
    """The desk and the hosts by name."""

    desk: Host
    hosts: Mapping[str, Host]

    @property
    def ports(self) -> dict[str, str]:
        """Address of each host -> its port on the bridge."""
        return {host.address: f"p{host.address.rpartition('.')[2]}" for host in self.hosts.values()}

    @contextlib.contextmanager
    def cut(self, name: str) -> Iterator[None]:
        """Pull the cable of a host, and put it back whatever happens: the next test needs the host, too."""
        self._set(name, "down")
        try:
            yield
        finally:
            self._set(name, "up")

    def _set(self, name: str, state: str) -> None:
        _inside(self.desk.init, "ip", "link", "set", self.ports[self.hosts[name].address], state)


@contextlib.contextmanager
def lab(names: Sequence[str], ssh: bool = True) -> Iterator[Lab]:
    """Make the hosts, with a key that lets the desk and the first host in everywhere, and end them afterwards.

    ssh: whether they have an ssh server.
    """
    with tempfile.TemporaryDirectory(prefix="ray-fed-lab-") as text, contextlib.ExitStack() as stack:
        folder = Path(text)
        if ssh:
            _keys(folder)
        desk = stack.enter_context(_host("desk", 1, folder, ssh))
        _inside(desk.init, "ip", "link", "add", "wire", "type", "bridge", "forward_delay", "0")
        _up(desk.init, "wire", desk.address)
        hosts = {
            name: stack.enter_context(_host(name, number, folder, ssh)) for number, name in enumerate(names, start=2)
        }
        made = Lab(desk, hosts)
        for host in hosts.values():
            _connect(made, host)
        yield made


def _keys(folder: Path) -> None:
    for name in ("key", "host_key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "ray-fed lab", "-f", str(folder / name)]
        subprocess.run(command, check=True)


@contextlib.contextmanager
def _host(name: str, number: int, folder: Path, ssh: bool) -> Iterator[Host]:
    own = folder / name
    own.mkdir()
    script = own / "init.sh"
    script.write_text(_init(name, own, folder, ssh))
    with (own / "init.log").open("w") as log:
        process = subprocess.Popen(
            ["unshare", *NAMESPACES, "bash", str(script)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
        )  # fmt: skip
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n", (own / "init.log").read_text()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        yield Host(name, f"{NETWORK}.{number}", process, int(children[0]))
    finally:
        process.communicate()  # the host ends with its standard input
        _unmounted(own)


def _unmounted(own: Path) -> None:
    """The kernel takes a namespace's mounts down a moment after its last process."""
    limit = time.monotonic() + 10.0
    while str(own) in Path("/proc/self/mounts").read_text() and time.monotonic() < limit:
        time.sleep(0.05)


def _init(name: str, own: Path, shared: Path, ssh: bool) -> str:
    """Return the script of a host's first process. It ends, and the host with it, when its standard input does."""
    lines = ["set -e", f"hostname {name}", "mount --make-rprivate /", "ip link set lo up"]
    for place in ("/root", "/tmp", "/srv", "/run", "/home"):
        lines += _private(place, own / place.strip("/"), REPOSITORY, Path(sys.prefix), Path(sys.base_prefix), shared)
    lines += [
        f"mount -t tmpfs -o size={SHM_BYTES},mode=1777 none /dev/shm",
        f"echo 'root:*:19000:0:99999:7:::' > {own}/shadow; mount --bind {own}/shadow /etc/shadow",
        f"echo 'export PATH={sys.prefix}/bin:$PATH OMP_NUM_THREADS=1' > /root/.bashrc",
        *_accounts(own),
        *(_ssh_server(shared) if ssh else []),
        "echo ready",
        "cat > /dev/null",
    ]
    return "\n".join(lines) + "\n"


def _accounts(own: Path) -> list[str]:
    lines = [f"cp /etc/passwd {own}/passwd"]
    for name, number in ACCOUNTS.items():
        lines += [
            f"echo '{name}:x:{number}:{number}::/home/{name}:/bin/bash' >> {own}/passwd",
            f"mkdir -m 700 /home/{name}; cp /root/.bashrc /home/{name}; chown -R {number}:{number} /home/{name}",
        ]
    return [*lines, f"mount --bind {own}/passwd /etc/passwd"]


def _ssh_server(shared: Path) -> list[str]:
    return [
        "mkdir -p /run/sshd /root/.ssh /root/.ray; chmod 700 /root/.ssh",
        f"cp {shared}/key.pub /root/.ssh/authorized_keys; cp {shared}/host_key /root/.ssh/host_key",
        f"cp {shared}/key /root/.ssh/id_ed25519",
        f"printf %s {shlex.quote(SSHD)} > /root/.ssh/sshd_config",
        "$(command -v sshd) -f /root/.ssh/sshd_config -E /root/.ssh/sshd.log",
    ]


SSHD = """HostKey /root/.ssh/host_key
PidFile none
PermitRootLogin prohibit-password
UsePAM no
StrictModes no
"""


def _private(place: str, own: Path, *needed: Path) -> list[str]:
    """Put an empty disk over a folder, in which only what is needed of the code and the lab is still to be found."""
    inside = {path for path in needed if path.is_relative_to(place)}
    lines = [f"mkdir {own}", f"mount -t tmpfs -o mode=1777 none {own}"]
    for path in sorted(inside):
        kept = own / path.relative_to(place)
        lines.append(f"mkdir -p {kept}; mount --rbind {path} {kept}")
    return [*lines, f"mount --rbind {own} {place}"]


def _connect(made: Lab, host: Host) -> None:
    port = made.ports[host.address]
    pair = ["ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(host.init)]
    _inside(made.desk.init, *pair)
    _inside(made.desk.init, "ip", "link", "set", port, "master", "wire", "up")
    _up(host.init, "eth0", host.address)
    _inside(host.init, "ip", "route", "add", "default", "via", made.desk.address)


def _up(init: int, device: str, address: str) -> None:
    _inside(init, "ip", "addr", "add", f"{address}/24", "dev", device)
    _inside(init, "ip", "link", "set", device, "up")


def _inside(init: int, *command: str) -> None:
    """Run a command in a host's network; its view of files and processes stays ours."""
    done = subprocess.run(
        ["nsenter", "--target", str(init), "--net", *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
