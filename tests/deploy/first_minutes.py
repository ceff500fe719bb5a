"""Runs the blocks of "The first five minutes" in deploy/README.md. Run by
tests/deploy/check-first-minutes.sh: with a binary in a network of its own, where this file stands in
for the other programs by their names, or with --docker.
"""

import contextlib
import os
import re
import shlex
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from websockets.sync.client import connect

README = Path("deploy/README.md")
# A block may take this long; with the real Docker it builds the image.
PATIENCE, BUILD_PATIENCE = 30, 1800
HERE = os.environ.get("FIRST_MINUTES")
STAND_INS = ["cargo", "docker", "install", "kubectl", "systemctl"]


def blocks():
    """The block of each way, by its heading."""
    section = README.read_text().split("\n## The first five minutes\n")[1].split("\n## ")[0]
    found = re.findall(r"\n### (.+)\n(?:(?!\n### )[\s\S])*?```sh\n([\s\S]*?)```", section)
    assert len(found) == section.count("\n### ") == 5, [name for name, _ in found]
    return dict(found)


def end_group(shell):
    """Kills a shell and what it has started, which has its ports until it is gone."""
    end = time.monotonic() + PATIENCE
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < end:
            os.killpg(shell.pid, signal.SIGKILL)
            shell.poll()
            time.sleep(0.05)


@contextlib.contextmanager
def run(name, script, environment, patience):
    """Runs a block, and ends what it has started."""
    print(f"..    {name}", flush=True)
    with tempfile.TemporaryFile() as output:
        shell = subprocess.Popen(
            ["bash", "-eu", "-c", script],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            try:
                code = shell.wait(patience)
            except subprocess.TimeoutExpired:
                code = f"none after {patience} s"
            if code != 0:
                output.seek(0)
                sys.exit(f"{name}: exit code {code}:\n{output.read().decode()}")
            yield
        finally:
            end_group(shell)
    print(f"ok    {name}", flush=True)


def expect_echo(url, context=None):
    """Expects that a message comes back."""
    with connect(url, ssl=context, open_timeout=PATIENCE) as client:
        client.send("five minutes")
        answer = client.recv(PATIENCE)
    assert answer == "five minutes", answer


def expect_file(path):
    """Waits for a file."""
    end = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < end, f"no {path.name}"
        time.sleep(0.05)


def with_stand_ins(binary):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "bin").mkdir()
        shutil.copy(binary, folder / "ws-proxy")
        for name in STAND_INS:
            stand_in = folder / "bin" / name
            stand_in.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} '
                                f'{shlex.quote(os.path.abspath(__file__))} stand-in {name} "$@"\n')
            stand_in.chmod(0o755)
        # Containers of one network find each other by their names.
        hosts = folder / "hosts"
        hosts.write_text("127.0.0.1 localhost app\n")
        subprocess.run(["mount", "--bind", hosts, "/etc/hosts"], check=True)
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        for name, script in blocks().items():
            root = folder / "root"
            shutil.rmtree(root, ignore_errors=True)
            (root / "usr/local/bin").mkdir(parents=True)
            path = f"{folder}/bin:{root}/usr/local/bin:{os.environ['PATH']}"
            environment = os.environ | {"PATH": path, "FIRST_MINUTES": str(folder)}
            with run(name, script, environment, PATIENCE):
                # The chain of Compose is run by check-chain.sh, manifests by none.
                if name == "Kubernetes sidecar":
                    expect_file(folder / "forwarded")
                elif name != "Compose":
                    expect_echo("ws://127.0.0.1:8080/")


def with_docker():
    scripts = blocks()
    compose = ["docker", "compose", "-f", "deploy/compose.yaml"]
    try:
        with run("docker run", scripts["docker run"], os.environ, BUILD_PATIENCE):
            expect_echo("ws://127.0.0.1:8080/")
    finally:
        subprocess.run(["docker", "rm", "-f", "ws-proxy", "app"], check=False)
        subprocess.run(["docker", "network", "rm", "chat"], check=False)
    # Its certificate is its own.
    anyone = ssl.create_default_context()
    anyone.check_hostname = False
    anyone.verify_mode = ssl.CERT_NONE
    try:
        with run("Compose", scripts["Compose"], os.environ, BUILD_PATIENCE):
            expect_echo("wss://127.0.0.1:8443/", anyone)
    finally:
        subprocess.run([*compose, "down"], check=False)


def start(*command):
    """Starts a program in the background; it ends with the block."""
    subprocess.Popen(command, stdin=subprocess.DEVNULL)


def ws_proxy():
    return f"{HERE}/ws-proxy"


def rooted(path):
    """A path of the host, in the folder that stands for it."""
    return f"{HERE}/root{path}"


def refuse(name, arguments):
    sys.exit(f"first_minutes.py: nothing stands in for {name} {shlex.join(arguments)}")


def cargo(*arguments):
    match arguments:
        case ["install", "--locked", "--path", "."]:
            shutil.copy(ws_proxy(), rooted("/usr/local/bin/ws-proxy"))
        case ["build", "--release", "--locked"]:
            pass
        case _:
            refuse("cargo", arguments)


def install(*arguments):
    *options, source, target = arguments
    source = ws_proxy() if source == "target/release/ws-proxy" else source
    target = rooted(target)
    # These are there on every host.
    if target.endswith("/"):
        os.makedirs(target, exist_ok=True)
    os.execv("/usr/bin/install", ["install", *options, source, target])


def systemctl(*arguments):
    match arguments:
        case ["daemon-reload"]:
            pass
        case ["enable", "--now", "ws-proxy"]:
            unit = Path(rooted("/etc/systemd/system/ws-proxy.service")).read_text()
            command = re.search(r"^ExecStart=(.*)$", unit, re.MULTILINE)[1].split()
            start(*(rooted(word) if word.startswith("/") else word for word in command))
        case _:
            refuse("systemctl", arguments)


def docker(*arguments):
    image = "ws-proxy:0.1.0"
    match arguments:
        case ["build", "-f", file, "-t", tag, "."] if tag == image:
            assert Path(file).is_file(), file
        case ["network", "create", "chat"]:
            pass
        case ["run", "-d", "--name", _, "--network", "chat", *rest] if image in rest:
            start(ws_proxy(), *rest[rest.index(image) + 1:])
        case ["exec", "ws-proxy", "/ws-proxy", *command]:
            os.execv(ws_proxy(), ["ws-proxy", *command])
        case ["compose", "-f", file, "up", "--build", "--detach"]:
            assert yaml.safe_load(Path(file).read_text())["services"]
        case ["compose", "-f", file, "exec", service, "/ws-proxy", *command]:
            assert service in yaml.safe_load(Path(file).read_text())["services"], service
            # A command that it has.
            subprocess.run([ws_proxy(), *command, "--help"], check=True)
        case _:
            refuse("docker", arguments)


def kubectl(*arguments):
    folder = Path("deploy/kubernetes/sidecar")
    deployment = yaml.safe_load((folder / "deployment.yaml").read_text())
    service = yaml.safe_load((folder / "service.yaml").read_text())
    pod = deployment["spec"]["template"]["spec"]
    containers = [one["name"] for one in pod["containers"] + pod.get("initContainers", [])]
    named = f"deployment/{deployment['metadata']['name']}"
    match arguments:
        case ["apply", "-k", path]:
            assert Path(path) == folder and (folder / "kustomization.yaml").is_file()
        case ["rollout", "status", name]:
            assert name == named, name
        case ["exec", name, "-c", container, "--", "/ws-proxy", *command]:
            assert name == named and container in containers, (name, container)
            subprocess.run([ws_proxy(), *command, "--help"], check=True)
        case ["port-forward", name, ports]:
            assert name == f"service/{service['metadata']['name']}", name
            assert int(ports.split(":")[1]) in [one["port"] for one in service["spec"]["ports"]]
            # It runs in the background, where nobody sees its exit code.
            Path(HERE, "forwarded").touch()
        case _:
            refuse("kubectl", arguments)


match sys.argv[1:]:
    case ["stand-in", name, *arguments]:
        {"cargo": cargo, "docker": docker, "install": install, "kubectl": kubectl,
         "systemctl": systemctl}[name](*arguments)
    case ["--docker"]:
        with_docker()
    case [binary]:
        with_stand_ins(binary)
