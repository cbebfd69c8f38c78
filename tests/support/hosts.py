r"""Several machines for real, on one: hosts that share nothing but the kernel, the disk and a switch between them.

    switch:  bridge br0 10.77.0.254 ---- veth ---- host "head"   10.77.0.1  eth0
                                   \---- veth ---- host "first"  10.77.0.2  eth0
                                    \--- veth ---- host "second" 10.77.0.3  eth0  ...

A host is a network namespace (`ip netns`, so a person can look into it) and an init process in pid, mount and uts
namespaces of its own: it has a name, an address, process numbers, /dev/shm and /tmp/ray to itself. Killing init is
cutting the power. Pulling the cable (`cut`) is another thing: everybody lives and nobody is heard.

The switch is a namespace too, so nothing of the machine's own network changes, and two test runs do not meet: names
carry the process id, addresses repeat. Init leaves when the pipe from the test closes, even by SIGKILL, and takes its
host along; what names remain are swept by the next run.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

from launcher.cluster.templates import DASHBOARD, PORT, plain

HOME = Path(__file__).resolve().parent.parent.parent
PREFIX = "longreel"
NETWORK, SWITCH = "10.77.0", 254
OBJECT_BYTES = 80 << 20
BIN = Path(sys.executable).parent
ASK = """
import sys, urllib.request
url, token = sys.argv[1:]
request = urllib.request.Request(url, headers={"Authorization": "Bearer " + open(token).read()})
print(urllib.request.urlopen(request, timeout=10).read().decode())
"""

# pid 1 of a host: bash reaps whoever is orphaned, and ends when its standard input does
INIT = """
set -e
hostname "$1"
mount -t tmpfs tmpfs /dev/shm
mkdir -p /tmp/ray
mount --bind "$2/ray" /tmp/ray
mount --bind "$2/hosts" /etc/hosts
shift 2
for path in "$@"; do mount -t tmpfs tmpfs "$path"; done
echo up
while read -r _; do :; done
"""


@cache
def why_not() -> str:
    """Why hosts cannot be made here; empty if they can."""
    missing = [tool for tool in ("ip", "unshare", "nsenter", "mount") if shutil.which(tool) is None]
    if missing:
        return f"hosts need {', '.join(missing)}"
    name = f"{PREFIX}-{os.getpid()}-try"
    try:
        ip("netns", "add", name)
        try:
            ip("-n", name, "link", "add", "br0", "type", "bridge")
            ip("-n", name, "link", "add", "one", "type", "veth", "peer", "name", "two")
            inside = ["unshare", "--mount", "--uts", "--pid", "--fork", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
            subprocess.run(inside, check=True, capture_output=True, text=True, timeout=30)
        finally:
            ip("netns", "del", name)
    except subprocess.CalledProcessError as error:
        return f"network namespaces are not allowed here: {' '.join(error.stderr.split())}"
    return ""


class Host:
    """A machine; made by `Network.add`, off until `boot`."""

    def __init__(self, network: Network, name: str, number: int) -> None:
        self.network, self.name, self.number = network, name, number
        self.address = f"{NETWORK}.{number}"
        self.space = f"{network.prefix}-{name}"
        self.folder = network.folder / name
        self.init: subprocess.Popen[str] | None = None
        self.started: list[subprocess.Popen[str]] = []
        (self.folder / "ray").mkdir(parents=True, exist_ok=True)
        ip("netns", "add", self.space)
        ip("-n", self.space, "link", "set", "lo", "up")
        cable = ("link", "add", "eth0", "type", "veth", "peer", "name", name, "netns", network.switch)
        ip("-n", self.space, *cable)
        ip("-n", network.switch, "link", "set", name, "master", "br0", "up")
        ip("-n", self.space, "addr", "add", f"{self.address}/24", "dev", "eth0")
        ip("-n", self.space, "link", "set", "eth0", "up")
        ip("-n", self.space, "route", "add", "default", "via", f"{NETWORK}.{SWITCH}")

    def boot(self, without: Sequence[Path] = ()) -> None:
        """Switch it on; folders of `without` are empty here, as if they were not on shared storage."""
        assert self.init is None, f"{self.name} is on"
        names = "".join(f"{h.address} {h.name}\n" for h in self.network.hosts.values())
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        # not `ip netns exec`: it would put a new /sys in place, and with it hide the control groups
        spaces = ["nsenter", f"--net=/run/netns/{self.space}", "unshare", "--mount", "--uts", "--pid", "--fork"]
        inside = ["--kill-child", "--mount-proc", "bash", "-c", INIT, "init", self.name, str(self.folder)]
        self.init = subprocess.Popen(
            [*spaces, *inside, *map(str, without)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            start_new_session=True,
        )  # fmt: skip
        assert self.init.stdout is not None
        assert self.init.stdout.readline() == "up\n", f"{self.name} does not start"

    @property
    def pid(self) -> int:
        """Of its init, as the machine below counts."""
        assert self.init is not None, f"{self.name} is off"
        return child(self.init.pid)

    def kill(self) -> None:
        """Cut the power: every process of the host is gone at once."""
        if self.init is not None:
            with suppress(ProcessLookupError, IndexError):
                os.kill(self.pid, signal.SIGKILL)
            self.init.kill()
            self.init.communicate()
            self.init = None
        for process in self.started:
            process.wait(30)
            if process.stdout is not None:
                process.stdout.close()
        self.started = []

    def cut(self) -> None:
        """Pull the cable out of the switch: no packet comes or goes, and nobody is told."""
        ip("-n", self.network.switch, "link", "set", self.name, "down")

    def heal(self) -> None:
        """Put it back."""
        ip("-n", self.network.switch, "link", "set", self.name, "up")

    def slow(self, megabits: float, milliseconds: float = 0) -> None:
        """A poor link, both ways; 0 megabits for the full one. A delay needs a kernel that has netem."""
        ends = ((self.space, "eth0"), (self.network.switch, self.name))
        for space, device in ends:
            subprocess.run(["tc", "-n", space, "qdisc", "del", "dev", device, "root"], capture_output=True, timeout=30)
            if megabits and milliseconds:
                shape = ["netem", "rate", f"{megabits}mbit", "delay", f"{milliseconds / 2}ms"]
            else:
                shape = ["tbf", "rate", f"{megabits}mbit", "burst", "64kb", "latency", "400ms"]
            if megabits:
                add = ["tc", "-n", space, "qdisc", "add", "dev", device, "root", *shape]
                subprocess.run(add, check=True, capture_output=True, text=True, timeout=30)

    def command(self, *arguments: object) -> list[str]:
        """The command line that runs `arguments` on this host."""
        enter = ["nsenter", "-t", str(self.pid), "-m", "-u", "-n", "-p", "--wd=."]
        return [*enter, "--", *map(str, arguments)]

    def start(self, *arguments: object, **environment: str) -> subprocess.Popen[str]:
        """Start a command here; `tell` sends it signals."""
        process = subprocess.Popen(
            self.command(*arguments), cwd=HOME, env=self.network.environment(environment), text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        self.started.append(process)
        return process

    def run(self, *arguments: object, seconds: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command here to its end."""
        return subprocess.run(
            self.command(*arguments), cwd=HOME, env=self.network.environment(environment), text=True,
            stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds,
        )  # fmt: skip

    def remove(self) -> None:
        """Off, and its name is free."""
        self.kill()
        subprocess.run(["ip", "netns", "del", self.space], capture_output=True, timeout=30)


class Network:
    """A switch and its hosts; a context manager that leaves nothing behind."""

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.prefix = f"{PREFIX}-{os.getpid()}-{secrets.token_hex(2)}"
        self.switch = f"{self.prefix}-switch"
        self.extra = dict(environment or {})
        self.hosts: dict[str, Host] = {}

    def __enter__(self) -> Network:
        sweep()
        ip("netns", "add", self.switch)
        ip("-n", self.switch, "link", "add", "br0", "type", "bridge", "forward_delay", "0")
        ip("-n", self.switch, "addr", "add", f"{NETWORK}.{SWITCH}/24", "dev", "br0")
        ip("-n", self.switch, "link", "set", "br0", "up")
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as stack:  # one that cannot be removed does not keep the others
            stack.callback(subprocess.run, ["ip", "netns", "del", self.switch], capture_output=True, timeout=30)
            for host in self.hosts.values():
                stack.callback(host.remove)

    def add(self, name: str) -> Host:
        """A new host, still off."""
        assert re.fullmatch(r"[a-z][a-z0-9]{0,14}", name), f"{name} is no name of a network device"
        self.hosts[name] = Host(self, name, len(self.hosts) + 1)
        return self.hosts[name]

    def environment(self, more: Mapping[str, str]) -> dict[str, str]:
        """Of the processes of every host: this Python first on the path, as in an activated venv, with our code."""
        ours = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        ours["PATH"], ours["PYTHONPATH"] = f"{BIN}:{ours.get('PATH', '')}", str(HOME)
        return {**ours, **self.extra, **more}


class Cluster(Network):
    """Ray on a head without CPUs and on workers of one CPU or more, as `longreel cluster --kind ray` writes it."""

    def __init__(self, folder: Path, workers: Sequence[str], cpus: int = 1) -> None:
        self.token = folder / "token"
        super().__init__(folder, {"RAY_AUTH_TOKEN_PATH": str(self.token)})
        self.script = folder / "ray.sh"
        self.workers, self.cpus = workers, cpus

    def __enter__(self) -> Cluster:
        super().__enter__()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.script.write_text(plain(str(BIN)))
            self.token.touch(0o600)  # the head would make one, but workers may be up before
            self.token.write_text(secrets.token_hex(32))
            for name in ("head", *self.workers):
                self.add(name)
            for name in ("head", *self.workers):
                self.up(name)
            self.wait("head", *self.workers)
        except BaseException:
            self.__exit__()
            raise
        return self

    @property
    def address(self) -> str:
        """Of the head, for `train --address`."""
        return f"{self.hosts['head'].address}:{PORT}"

    @property
    def url(self) -> str:
        """Of the head, for `submit --address`."""
        return f"http://{self.hosts['head'].address}:{DASHBOARD}"

    def up(self, name: str, without: Sequence[Path] = (), **environment: str) -> None:
        """Switch a host on and start its Ray node, again and again if it ends."""
        host = self.hosts[name]
        host.boot(without)
        role = ["head"] if name == "head" else ["worker", self.hosts["head"].address, f"--num-cpus={self.cpus}"]
        with open(host.folder / "ray.log", "a") as log:
            node = subprocess.Popen(
                host.command("bash", self.script, *role, f"--object-store-memory={OBJECT_BYTES}"),
                cwd=host.folder, env=self.environment(environment), text=True, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True,
            )  # fmt: skip
        host.started.append(node)

    def nodes(self) -> list[str]:
        """Hosts whose Ray nodes the head takes for alive."""
        by_address = {h.address: h.name for h in self.hosts.values()}
        found = self.hosts["head"].run(sys.executable, "-c", ASK, f"{self.url}/api/v0/nodes", self.token)
        listed = json.loads(found.stdout)["data"]["result"]["result"] if found.returncode == 0 else []
        return sorted(by_address[n["node_ip"]] for n in listed if n["state"] == "ALIVE")

    def wait(self, *names: str, seconds: float = 120) -> None:
        """Until the nodes of these hosts are alive, and no other."""
        deadline = time.monotonic() + seconds
        while (found := self.nodes()) != sorted(names):
            if time.monotonic() > deadline:
                logs = "\n".join((self.hosts[n].folder / "ray.log").read_text()[-2000:] for n in names)
                raise TimeoutError(f"alive: {found}, not {names}\n{logs}")
            time.sleep(0.1)


def tell(process: subprocess.Popen[str], number: int) -> None:
    """Send a signal to a command that `Host.start` started."""
    os.kill(child(process.pid), number)


def child(pid: int) -> int:
    """The only child of nsenter or unshare, which is the command itself."""
    deadline = time.monotonic() + 10
    while not (found := Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    return int(found[0])


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=30)


def sweep() -> None:
    """Remove the names that a killed test run left."""
    for name in listed():
        pid = name.split("-")[1]
        if not Path(f"/proc/{pid}").exists():
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=30)


def listed() -> list[str]:
    """Names of the network namespaces that are ours or of another test run."""
    folder = Path("/run/netns")
    return sorted(p.name for p in folder.glob(f"{PREFIX}-*")) if folder.is_dir() else []


@contextmanager
def network(folder: Path, *names: str) -> Iterator[dict[str, Host]]:
    """Hosts that are on, without Ray."""
    with Network(folder) as made:
        for name in names:
            made.add(name)
        for host in made.hosts.values():
            host.boot()
        yield made.hosts
