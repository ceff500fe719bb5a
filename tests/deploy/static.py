"""Runs the static binary alone in an empty root, as the image and Kubernetes do, in the
namespaces of check-static.sh.

The root is mounted read-only and holds the binary, /etc/hosts and /etc/resolv.conf; the config
comes from a folder that is mounted over an empty one, as the kubelet lays out a ConfigMap. The
program runs as 65532, without a capability or a way to get one.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import websockets
from names import Names

USER = 65532
PATIENCE = 20
# With an admin listener, 0.1 MiB of it, and with the pages of the binary, which are most of it.
MOST_MEMORY_KIB = 3_712
MOST_START_MS = 20
STARTS = 20
BACKENDS = {"by-hosts.internal": "127.0.0.2", "by-dns": "127.0.0.3"}
# Everything that was started; what has ended is not harmed by being killed.
RUNNING = []
# What the kubelet writes: a short name is looked up in the namespace's domain first.
SEARCH = "default.svc.cluster.local"
# The commands are given no --config: they find the file in the working directory of the image.
WORKING_DIRECTORY = re.findall(r"\nWORKDIR (.+)\n", Path("deploy/Dockerfile").read_text())[-1]
CONFIG = """
workers = 1
watch_config_ms = 2000
[admin]
bind = "0.0.0.0:9600"
[drain]
spread_ms = 0
[[ws_proxy]]
bind = "127.0.0.1:8080"
backends = ["by-hosts.internal:9000", "by-dns:9000"]
"""


def bring_loopback_up():
    """A new network namespace has its loopback interface down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh", b"lo", 0x1 | 0x40)  # IFF_UP | IFF_RUNNING
        fcntl.ioctl(any_socket, 0x8914, request)  # SIOCSIFFLAGS


def mount(*arguments):
    subprocess.run(["mount", *map(str, arguments)], check=True)


def make_root(folder, binary):
    """The image's file system, as a container's runtime completes it."""
    root, config = folder / "root", folder / "config"
    for directory in [config, root / "proc", root / "etc" / "ws-proxy"]:
        directory.mkdir(parents=True)
    shutil.copy(binary, root / "ws-proxy")
    (root / "etc/hosts").write_text(
        f"127.0.0.1 localhost\n{BACKENDS['by-hosts.internal']} by-hosts.internal\n"
    )
    (root / "etc/resolv.conf").write_text(
        f"search {SEARCH}\nnameserver 127.0.0.53\noptions ndots:5\n"
    )
    write_config(config, CONFIG)
    (config / "ws-proxy.toml").symlink_to("..data/ws-proxy.toml")
    mount("--bind", root, root)
    mount("--bind", config, root / "etc/ws-proxy")
    mount("-o", "remount,bind,ro", root / "etc/ws-proxy")
    mount("-o", "remount,bind,ro", root)
    return root, config


def write_config(config, text):
    """Changes the file as the kubelet does: into a new folder, to which the link ..data leads from
    one moment to the next.
    """
    folder = Path(tempfile.mkdtemp(prefix="..", dir=config))
    folder.chmod(0o755)
    (folder / "ws-proxy.toml").write_text(text)
    link = config / "..data"
    before = config / os.readlink(link) if link.is_symlink() else None
    new = config / "..data_tmp"
    new.symlink_to(folder.name)
    new.rename(link)
    if before:
        shutil.rmtree(before)


class Program:
    """The program as process 1 of its own container, or alone in its root."""

    def __init__(self, root, with_proc, arguments=("--config", "/etc/ws-proxy/ws-proxy.toml")):
        identity = [f"--setuid={USER}", f"--setgid={USER}"]
        container = ["--pid", "--fork", "--kill-child", "--mount-proc"] if with_proc else []
        self.process = subprocess.Popen(
            ["setpriv", "--no-new-privs"]
            + ["unshare", *container, f"--root={root}", f"--wd={WORKING_DIRECTORY}", *identity]
            + ["/ws-proxy", *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env={},
        )
        RUNNING.append(self.process)
        self.log = []
        self.expect_log("event=listening")
        self.pid = self.process.pid
        if with_proc:
            children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
            self.pid = int(children[0])

    def expect_log(self, text):
        # A wait for a line that never comes ends with the program.
        impatience = threading.Timer(PATIENCE, end, [self.process])
        impatience.start()
        try:
            while not self.log or text not in self.log[-1]:
                line = self.process.stderr.readline()
                assert line, f"no {text} within {PATIENCE} s: {''.join(self.log)}"
                self.log.append(line)
        finally:
            impatience.cancel()

    def status(self, key):
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(line.split()[1] for line in lines if line.startswith(f"{key}:"))

    def run_inside(self, *arguments, code=0):
        """Runs a command as `kubectl exec` and the kubelet's hooks do, and gives what it prints."""
        target = [
            f"--target={self.pid}",
            "--pid",
            "--root",
            "--wd",
            f"--setuid={USER}",
            f"--setgid={USER}",
        ]
        done = subprocess.run(
            ["nsenter", *target, "/ws-proxy", *arguments],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env={},
        )
        assert done.returncode == code, f"{arguments}: {done}"
        return done.stdout + done.stderr

    def expect_exit(self):
        self.log += self.process.stderr.readlines()
        code = self.process.wait(PATIENCE)
        assert code == 0, f"exit code {code}: {''.join(self.log)}"


async def echo(connection):
    # The tunnel that is closed by its operator ends with a code that is an error here.
    with contextlib.suppress(websockets.ConnectionClosed):
        async for message in connection:
            await connection.send(message)


async def carry(program):
    """A WebSocket through each backend, and back the last one, which is left open."""
    for _ in BACKENDS:
        client = await websockets.connect("ws://127.0.0.1:8080/chat", proxy=None, max_size=None)
        # More than a buffer, so that splice(2) has to be permitted as well.
        for message in ["hello", b"\x01" * 1_000_000]:
            await client.send(message)
            assert await client.recv() == message
    return client


async def expect_close(client, code):
    try:
        got = await client.recv()
        raise AssertionError(f"{got!r} instead of a Close")
    except websockets.ConnectionClosed as closed:
        got = closed.rcvd and closed.rcvd.code
        assert got == code, f"no Close {code}, but {closed}"


async def expect_goodbye(program, client):
    await expect_close(client, 1001)
    await asyncio.to_thread(program.expect_exit)


async def expect_probes(path, status, body):
    """Asks as the kubelet does, which names the address and sends no token."""
    reader, writer = await asyncio.open_connection("127.0.0.1", 9600)
    writer.write(
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:9600\r\nUser-Agent: kube-probe/1.37\r\n"
        "Accept: */*\r\nConnection: close\r\n\r\n".encode()
    )
    head, _, rest = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    assert head.startswith(f"HTTP/1.1 {status} ") and rest == body, f"{path}: {head} {rest}"


async def expect_commands(program, config):
    """Everything that can be asked of a running proxy, without a shell or curl."""

    async def inside(*arguments, **more):
        return await asyncio.to_thread(program.run_inside, *arguments, **more)

    for path in ["/livez", "/readyz"]:
        await expect_probes(path, 200, "ok\n")
    for command in [["health"], ["health", "--live"], ["health", "127.0.0.1:8080"]]:
        assert await inside(*command) == "", command
    # The deprecated name.
    assert await inside("probe", "127.0.0.1:8080") == ""

    kept, closed = await carry(program), await carry(program)
    listed = json.loads(await inside("tunnels", "--json"))
    # The newest is first.
    assert len(listed) >= 2 and listed[0]["path"] == "/chat", listed
    assert str(listed[0]["id"]) in await inside("tunnels", "--limit", "1")
    answer = await inside("close", str(listed[0]["id"]), "--code", "4001")
    assert answer == "closing 1 tunnel\n", answer
    await expect_close(closed, 4001)

    changed = CONFIG.replace("[[ws_proxy]]", "[[ws_proxy]]\nmax_connections = 1000")
    assert "max_connections = 1000" not in await inside("check", "--print")
    write_config(config, changed)
    assert "max_connections = 1000" in await inside("check", "--print")
    await asyncio.to_thread(program.expect_log, "event=config_reloaded by=watch")
    write_config(config, changed.replace("1000", "2000"))
    # Before the file is looked at again, or after it: both load the same.
    assert await inside("reload") == "reloaded\n"
    await asyncio.to_thread(program.expect_log, "event=config_reloaded by=admin")
    write_config(config, changed.replace("max_connections", "max_connection"))
    assert "max_connection" in await inside("reload", code=2)
    await asyncio.to_thread(program.expect_log, "event=config_reload_failed by=watch")
    write_config(config, CONFIG)
    await asyncio.to_thread(program.expect_log, "event=config_reloaded by=watch")
    await kept.send("not cut")
    assert await kept.recv() == "not cut"
    return kept


def assert_is_confined(program):
    assert [program.status(key) for key in ["Uid", "Gid"]] == [str(USER)] * 2
    assert int(program.status("CapEff"), 16) == 0
    assert program.status("NoNewPrivs") == "1"
    for path in ["", "etc/ws-proxy"]:
        flags = os.statvfs(f"/proc/{program.pid}/root/{path}").f_flag
        assert flags & os.ST_RDONLY, f"/{path} is not read-only"


def measure_start(root):
    """The fastest of several starts, from exec to the first client, so that a busy machine is
    not the program's fault.
    """
    times = []
    for _ in range(STARTS):
        start = time.perf_counter()
        process = subprocess.Popen(
            ["/ws-proxy", "--config", "/etc/ws-proxy/ws-proxy.toml"],
            preexec_fn=lambda: os.chroot(root),
            stderr=subprocess.DEVNULL,
        )
        RUNNING.append(process)
        while True:
            with (
                contextlib.suppress(ConnectionRefusedError),
                socket.create_connection(("127.0.0.1", 8080)),
            ):
                break
            assert process.poll() is None, "it ends before it listens"
        times.append((time.perf_counter() - start) * 1000)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    print(
        f"listens after {min(times):.1f} ms, "
        f"or {sorted(times)[STARTS // 2]:.1f} ms in half of {STARTS} starts"
    )
    assert min(times) <= MOST_START_MS, f"it may take {MOST_START_MS} ms"


async def check(root, config):
    for address in BACKENDS.values():
        await websockets.serve(echo, address, 9000, max_size=None)
    loop = asyncio.get_running_loop()
    names = {f"by-dns.{SEARCH}": BACKENDS["by-dns"]}
    await loop.create_datagram_endpoint(lambda: Names(names), local_addr=("127.0.0.53", 53))

    alone = Program(root, with_proc=False)
    memory = int(alone.status("VmRSS"))
    print(f"idle it holds {memory} KiB")
    assert memory <= MOST_MEMORY_KIB, f"it may hold {MOST_MEMORY_KIB} KiB"
    assert_is_confined(alone)
    client = await carry(alone)
    os.kill(alone.pid, signal.SIGTERM)
    await expect_goodbye(alone, client)
    print(
        "alone in its root: both backends by name, "
        "SIGTERM with an open tunnel gives Close 1001 and exit 0"
    )

    first = Program(root, with_proc=True)
    assert_is_confined(first)
    client = await expect_commands(first, config)
    await asyncio.to_thread(first.run_inside, "drain")
    await expect_goodbye(first, client)
    print("as process 1: the same, by all commands, and the hook that Kubernetes executes")

    # What changes at a restart only must not keep the hook from draining: it finds nobody at the
    # new address, and sends a signal. The same where the command line has the settings.
    elsewhere = CONFIG.replace(":9600", ":9601")
    for more in [(), ("--bind", "127.0.0.1:8080", "--backend", "by-dns:9000")]:
        write_config(config, CONFIG)
        again = Program(root, True, *([more] if more else []))
        client = await carry(again)
        write_config(config, elsewhere)
        await asyncio.to_thread(again.run_inside, "health", code=1)
        await asyncio.to_thread(again.run_inside, "drain")
        await expect_goodbye(again, client)
    write_config(config, CONFIG)

    # Not as process 1, whose end would be the end of those who wait for it, too.
    waited = Program(root, with_proc=False)
    client = await carry(waited)
    waiting = asyncio.create_task(asyncio.to_thread(waited.run_inside, "drain", "--wait"))
    await expect_close(client, 1001)
    await waiting
    await asyncio.to_thread(waited.expect_exit)
    print("drain: by a signal where nobody answers, and --wait returns when the last tunnel ended")


def end(process):
    """Ends a process, and first the one that it has made into process 1, which does not end with
    it: the change of its user takes that from it (prctl(2), PR_SET_PDEATHSIG).
    """
    if process.poll() is None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for pid in map(int, children):
            os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()


def main():
    bring_loopback_up()
    # This mount namespace ends with this process, and everything in it.
    mount("--make-rprivate", "/")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        root, config = make_root(Path(folder), sys.argv[1])
        try:
            asyncio.run(asyncio.wait_for(check(root, config), 6 * PATIENCE))
            measure_start(root)
        finally:
            for process in RUNNING:
                end(process)
            for path in [root / "etc/ws-proxy", root]:
                subprocess.run(["umount", "--lazy", path], check=True)


main()
