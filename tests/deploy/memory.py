"""Measures what tunnels cost a memory limit: all that the kernel charges to a memory cgroup with
only the proxy in it.

Run by tests/deploy/measure-memory.sh. The clients and the backend are this process, which is not
in the cgroup.
"""

import collections
import os
import resource
import select
import socket
import subprocess
import sys
import tempfile
import time

V2 = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
GROUP = f"/sys/fs/cgroup{'' if V2 else '/memory'}/ws-proxy-{os.getpid()}"
REQUEST = (
    b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
ANSWER = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)
CLIENT, BACKEND = 0, 1
# From the backend unmasked, from the client masked with zeros: 16 KiB, as a chunk that is sent over
# and over.
FRAME = {
    BACKEND: b"\x82\x7e\x40\x00" + bytes(16384),
    CLIENT: b"\x82\xfe\x40\x00\0\0\0\0" + bytes(16384),
}
TIMED = (
    "ping_interval_ms = 3600000\nidle_timeout_ms = 3600000\n"
    "backend_lost_code = 1014\nclient_lost_code = 1001\n"
)
BOUND = "socket_buffer_bytes = 131072\n"
RESET = b"\1\0\0\0\0\0\0\0"


def number(name):
    with open(f"{GROUP}/{name}") as file:
        return int(file.read())


class Proxy:
    """The proxy in a cgroup of its own, and the tunnels through it."""

    def __init__(self, program, keys):
        os.mkdir(GROUP)
        if not V2:
            # Sockets are counted only where there is a limit; they have a counter of their own.
            with open(f"{GROUP}/memory.kmem.tcp.limit_in_bytes", "w") as file:
                file.write(str(1 << 40))
        self.tunnels = []
        self.sent = collections.Counter()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = free.getsockname()
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as config:
            config.write(
                f'workers = 1\n[[ws_proxy]]\nbind = "127.0.0.1:{self.address[1]}"\n{keys}'
                f'backends = ["127.0.0.1:{self.listener.getsockname()[1]}"]\n'
            )
            config.flush()
            self.process = subprocess.Popen(
                [
                    "sh",
                    "-c",
                    'echo $$ >"$0/cgroup.procs" && exec "$@"',
                    GROUP,
                    program,
                    "--config",
                    config.name,
                    "--log-level",
                    "error",
                ]
            )
            for _ in range(100):
                time.sleep(0.1)
                if socket.socket().connect_ex(self.address) == 0:
                    return
        sys.exit("the proxy does not listen")

    def open(self, tunnels):
        while len(self.tunnels) < tunnels:
            client = socket.create_connection(self.address)
            client.sendall(REQUEST)
            backend, _ = self.listener.accept()
            for source, after in (backend, ANSWER), (client, b""):
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    head += source.recv(4096) or sys.exit("the proxy has refused a tunnel")
                source.sendall(after)
            self.tunnels.append((client, backend))

    def flood(self, side):
        """Sends on all tunnels until nothing has been taken for two seconds; nobody reads."""
        chunk = FRAME[side] * 16
        senders = {tunnel[side].fileno(): tunnel[side] for tunnel in self.tunnels}
        with select.epoll() as poll:
            for descriptor, sender in senders.items():
                sender.setblocking(False)
                poll.register(descriptor, select.EPOLLOUT)
            while ready := poll.poll(2):
                for descriptor, _ in ready:
                    at = self.sent[descriptor] % len(chunk)
                    self.sent[descriptor] += senders[descriptor].send(chunk[at:])

    def memory(self):
        # What has just been freed goes back a little later.
        time.sleep(2)
        if V2:
            return number("memory.current")
        return number("memory.usage_in_bytes") + number("memory.kmem.tcp.usage_in_bytes")

    def end(self):
        self.process.kill()
        self.process.wait()
        for end in (end for tunnel in self.tunnels for end in tunnel):
            # A reset, so that no port stays taken.
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            end.close()
        time.sleep(0.5)
        os.rmdir(GROUP)


def measure(program, label, counts, keys="", floods=()):
    proxy = Proxy(program, keys)
    try:
        idle = proxy.memory()
        print(f"{label:30} {0:7} {idle / 2**20:9.1f} MiB", flush=True)
        for count in counts:
            proxy.open(count)
            for side in floods:
                proxy.flood(side)
            all_of_it = proxy.memory()
            each = (all_of_it - idle) / count / 1024
            print(f"{label:30} {count:7} {all_of_it / 2**20:9.1f} MiB {each:9.1f} KiB", flush=True)
    finally:
        proxy.end()


def main():
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    socket.setdefaulttimeout(20)
    program = sys.argv[1]
    for name in "rmem", "wmem":
        with open(f"/proc/sys/net/ipv4/tcp_{name}") as file:
            print(
                f"net.ipv4.tcp_{name}: at most "
                f"{int(file.read().split()[2]) / 2**20:.2f} MiB a socket"
            )
    print(f"{'tunnels that are':30} {'number':>7} {'all':>13} {'each':>13}")
    measure(program, "idle", (1000, 4000))
    measure(program, "idle, with all times set", (1000, 4000), TIMED)
    for label, keys in ("", ""), (", bounded", BOUND):
        measure(program, f"stuck at the client{label}", (4, 16), keys, [BACKEND])
        measure(program, f"stuck at the backend{label}", (4, 16), keys, [CLIENT])
        measure(program, f"stuck both ways{label}", (4, 16), keys, [CLIENT, BACKEND])


if __name__ == "__main__":
    main()
