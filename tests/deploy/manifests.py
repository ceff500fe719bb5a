"""Checks what tests/deploy/check-manifests.sh has kubectl build of deploy/kubernetes/.

Each document is validated strictly against the schemas of Kubernetes, and all of them together
against what no schema knows: that ws-proxy takes the configuration and loads a changed one, that
ports meet, that the times of a stop add up, that every container is confined. The configurations
of all of deploy/ are compared in what they have in common. Then the same is done with variants that
are broken on purpose: each has to be found.
"""

import argparse
import copy
import functools
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import kubernetes_validate
import yaml

# The versions that everything has to be good for, and the oldest one that each form is made for.
CURRENT = ["1.35", "1.36", "1.37"]
FIRST = {"sidecar": "1.30", "sidecar-classic": "1.25", "standalone": "1.25"}

# A preStop hook is a process that the kubelet has the runtime start: on a busy node that may be so
# many seconds late.
HOOK_S = 5
# What an app gets to stop, once it is told to.
APP_S = 10
# Between the last thing that has to happen and the kill.
SPARE_S = 5

# What resources.limits.memory has to hold, as the comment beside it adds up.
PROCESS_KIB = 8 * 1024
TUNNEL_KIB = 13.5
STUCK_KIB = 60 * 1024
# A direction whose reader is stuck then takes 0.6 MiB.
BUFFER_BYTES = 128 * 1024

# The shortest idle timeout that is usual is 60 s: two pings have to fit in.
PING_MS = 30_000

# A changed file is looked for this often, everywhere in deploy/.
WATCH_MS = 2000
# /livez gives the workers so long to answer.
LIVEZ_S = 1

LOCALHOST = {"127.0.0.1", "localhost", "[::1]"}
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
DRAIN = {"delay_ms": 0, "spread_ms": 5000, "timeout_ms": 8000, "close_grace_ms": 2000}


def split(address):
    """Host and port of `host:port`."""
    host, _, port = address.rpartition(":")
    return host, int(port)


def named(document):
    return f"{document.get('kind')}/{document.get('metadata', {}).get('name')}"


def of_kind(documents, kind):
    return [document for document in documents if document["kind"] == kind]


# --- what schemas know


def schema_faults(documents, versions):
    found = {}
    for document in documents:
        for version in versions:
            for fault in schema_fault(document, version):
                found.setdefault(fault, []).append(version)
    return [f"{fault} (Kubernetes {', '.join(versions)})" for fault, versions in found.items()]


def schema_fault(document, version):
    try:
        used = kubernetes_validate.validate(document, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.path)
        yield f"{named(document)}: {path.lstrip('.') or 'it'}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError:
        yield f"{named(document)}: kind: there is no schema for it in {document['apiVersion']}"
    else:
        # It takes an older version's schema where it has none of the one that is asked for.
        if used != version:
            yield f"{named(document)}: was validated against {used}"


# --- what they do not


class Container:
    """A container of a pod, with what is said of it in several places."""

    def __init__(self, path, spec, native):
        self.path, self.spec, self.native = path, spec, native
        self.args = spec.get("args", [])
        self.ports = {port.get("name"): port["containerPort"] for port in spec.get("ports", [])}
        self.is_proxy = "--config" in self.args
        self.bind = self.after("--bind")

    def after(self, flag):
        return self.args[self.args.index(flag) + 1] if flag in self.args[:-1] else None

    def pre_stop(self):
        return self.spec.get("lifecycle", {}).get("preStop", {})

    def held_s(self):
        """How long its preStop hook keeps it from SIGTERM."""
        hook = self.pre_stop()
        if "sleep" in hook:
            return hook["sleep"]["seconds"]
        command = hook.get("exec", {}).get("command", [])
        return int(command[-1]) if command[-2:-1] == ["sleep"] else 0


class Pod:
    """The pods of a Deployment."""

    def __init__(self, document):
        self.document = document
        self.spec = document["spec"]["template"]["spec"]
        self.labels = document["spec"]["template"]["metadata"]["labels"]
        self.containers = [
            Container(
                f"{kind}[{index}]",
                spec,
                kind == "initContainers" and spec.get("restartPolicy") == "Always",
            )
            for kind in ("initContainers", "containers")
            for index, spec in enumerate(self.spec.get(kind, []))
        ]
        self.proxy = next((container for container in self.containers if container.is_proxy), None)
        self.apps = [container for container in self.containers if not container.is_proxy]

    def fault(self, path, problem):
        return f"{named(self.document)}: spec.template.spec.{path}: {problem}"

    def has(self, selector):
        return selector.items() <= self.labels.items()


@functools.cache
def config_fault(ws_proxy, text):
    """What `ws-proxy check` says against a configuration."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(text)
        file.flush()
        done = subprocess.run(
            [ws_proxy, "check", "--config", file.name], capture_output=True, text=True
        )
        return (
            None
            if done.returncode == 0
            else done.stderr.strip().replace(file.name, "ws-proxy.toml")
        )


def faults(documents, first, version, ws_proxy):
    """What is wrong with the documents of one form, each in one line."""
    pods = [Pod(document) for document in of_kind(documents, "Deployment")]
    configs, services = of_kind(documents, "ConfigMap"), of_kind(documents, "Service")
    if not any(pod.proxy for pod in pods):
        yield "no Deployment runs ws-proxy with --config"

    broken = set()
    for document in configs:
        if re.search(r"-[a-z0-9]{10}$", document["metadata"]["name"]):
            yield (
                f"{named(document)}: metadata.name: has a hash, "
                "so that a change of it would reach no pod that runs"
            )
        if document.get("immutable"):
            yield f"{named(document)}: immutable: a change could not be applied"
        for key, text in document["data"].items():
            fault = config_fault(ws_proxy, text)
            if fault:
                broken.add(document["metadata"]["name"])
                yield f"{named(document)}: data[{key}]: {fault}"

    for pod in pods:
        yield from confinement_faults(pod)
        yield from image_faults(pod, version)
        yield from command_faults(pod, ws_proxy)
        yield from resource_faults(pod)
        if not pod.has(pod.document["spec"]["selector"]["matchLabels"]):
            yield f"{named(pod.document)}: spec.selector: does not select its own pods"
        if pod.proxy:
            name, config = config_of(pod, configs)
            if config is None:
                yield pod.fault(
                    pod.proxy.path,
                    "--config is in no read-only mount of a ConfigMap that is built here",
                )
            elif name not in broken:
                config = tomllib.loads(config)
                drain = DRAIN | config.get("drain", {})
                yield from reload_faults(pod, config)
                yield from port_faults(pod, config)
                yield from admin_faults(pod, config, services)
                yield from backend_faults(pod, pods, config, services)
                yield from setting_faults(pod, config, drain)
                yield from time_faults(pod, drain)

    for service in services:
        yield from service_faults(service, pods, first)
    for budget in of_kind(documents, "PodDisruptionBudget"):
        chosen = [pod for pod in pods if pod.has(budget["spec"]["selector"]["matchLabels"])]
        if not chosen:
            yield f"{named(budget)}: spec.selector: selects no pod"
        for pod in chosen:
            if pod.document["spec"].get("replicas", 1) < 2:
                yield f"{named(pod.document)}: spec.replicas: one pod cannot keep a budget"


def config_of(pod, configs):
    """The ConfigMap and the text that the proxy of a pod reads."""
    folder, _, file = pod.proxy.after("--config").rpartition("/")
    for mount in pod.proxy.spec.get("volumeMounts", []):
        if mount["mountPath"] != folder or not mount.get("readOnly"):
            continue
        for volume in pod.spec.get("volumes", []):
            name = volume.get("configMap", {}).get("name")
            for config in configs:
                if volume["name"] == mount["name"] and config["metadata"]["name"] == name:
                    return name, config["data"].get(file)
    return None, None


def reload_faults(pod, config):
    """Whether a changed configuration reaches the program, and the commands find it."""
    if config.get("watch_config_ms") != WATCH_MS:
        yield pod.fault(pod.proxy.path, f"watch_config_ms is not {WATCH_MS}")
    for index, mount in enumerate(pod.proxy.spec.get("volumeMounts", [])):
        if "subPath" in mount or "subPathExpr" in mount:
            here = f"{pod.proxy.path}.volumeMounts[{index}]"
            yield pod.fault(here, "subPath: the kubelet would never bring a change")
    folder = re.findall(r"\nWORKDIR (.+)\n", Path("deploy/Dockerfile").read_text())[-1]
    folder = pod.proxy.spec.get("workingDir", folder)
    if pod.proxy.after("--config") != f"{folder}/ws-proxy.toml":
        yield pod.fault(pod.proxy.path, "the hook and the commands would not find the --config")


def admin_faults(pod, config, services):
    """Whether the admin listener can be asked by those who have to, and by no more."""
    if "admin" not in config:
        yield pod.fault(pod.proxy.path, "[admin] is missing")
        return
    host, port = split(config["admin"]["bind"])
    if host in LOCALHOST:
        yield pod.fault(pod.proxy.path, f"[admin] is on {host}, where no kubelet gets to")
    annotations = pod.document["spec"]["template"]["metadata"].get("annotations", {})
    expected = {"scrape": "true", "port": str(port), "path": "/metrics"}
    for name, value in expected.items():
        if annotations.get(f"prometheus.io/{name}") != value:
            here = f"{named(pod.document)}: spec.template.metadata.annotations"
            yield f"{here}: prometheus.io/{name} is not {value}"
    for service in services:
        for index, entry in enumerate(service["spec"]["ports"]):
            target = entry["targetPort"]
            if pod.has(service["spec"]["selector"]) and port in (
                target,
                pod.proxy.ports.get(target),
            ):
                here = f"{named(service)}: spec.ports[{index}].targetPort"
                yield f"{here}: leads to the admin listener"


def confinement_faults(pod):
    """The `restricted` Pod Security Standard, and a read-only root."""
    if pod.spec.get("automountServiceAccountToken") is not False:
        yield pod.fault("automountServiceAccountToken", "must be false")
    for field in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
        if pod.spec.get(field):
            # In a shared process namespace, process 1 is not ws-proxy, and `ws-proxy drain` has
            # nobody to tell.
            yield pod.fault(field, "must not be set")
    of_pod = pod.spec.get("securityContext", {})
    for container in pod.containers:
        here = f"{container.path}.securityContext"
        # What a container says goes before what the pod says.
        context = of_pod | container.spec.get("securityContext", {})
        if context.get("runAsNonRoot") is not True:
            yield pod.fault(f"{here}.runAsNonRoot", "must be true")
        for field in ("runAsUser", "runAsGroup"):
            if not context.get(field):
                yield pod.fault(f"{here}.{field}", "must be a number, and not 0")
        if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield pod.fault(f"{here}.seccompProfile", "must be RuntimeDefault")
        if context.get("allowPrivilegeEscalation") is not False:
            yield pod.fault(f"{here}.allowPrivilegeEscalation", "must be false")
        if context.get("readOnlyRootFilesystem") is not True:
            yield pod.fault(f"{here}.readOnlyRootFilesystem", "must be true")
        if context.get("privileged"):
            yield pod.fault(f"{here}.privileged", "must not be set")
        if context.get("capabilities") != {"drop": ["ALL"]}:
            yield pod.fault(f"{here}.capabilities", "must drop ALL and add none")


@functools.cache
def command_fault(ws_proxy, arguments):
    """What the program says against arguments; --help after them keeps it from doing what they
    say.
    """
    done = subprocess.run([ws_proxy, *arguments, "--help"], capture_output=True, text=True)
    return None if done.returncode == 0 else done.stderr.strip()


def command_faults(pod, ws_proxy):
    """Whether the program knows everything that it is called with."""
    for container in pod.containers:
        called = {"lifecycle.preStop": container.pre_stop()}
        called |= {probe: container.spec.get(probe, {}) for probe in PROBES}
        called = {
            path: action.get("exec", {}).get("command", []) for path, action in called.items()
        }
        if container.spec["image"].rpartition("/")[2].startswith("ws-proxy:"):
            called["args"] = ["/ws-proxy", *container.args]
        for path, command in called.items():
            fault = (
                command_fault(ws_proxy, tuple(command[1:]))
                if command[:1] == ["/ws-proxy"]
                else None
            )
            if fault:
                yield pod.fault(f"{container.path}.{path}", fault)


def image_faults(pod, version):
    for container in pod.containers:
        image = container.spec["image"]
        name, _, tag = image.rpartition("/")[2].partition(":")
        if not tag and "@sha256:" not in image:
            yield pod.fault(f"{container.path}.image", f"{image} has no tag")
        elif tag == "latest":
            yield pod.fault(f"{container.path}.image", "latest is a different image tomorrow")
        elif name == "ws-proxy" and tag != version:
            yield pod.fault(
                f"{container.path}.image", f"{image} is not the version of Cargo.toml, {version}"
            )


def resource_faults(pod):
    for container in pod.containers:
        resources = container.spec.get("resources", {})
        requests, limits = resources.get("requests", {}), resources.get("limits", {})
        for found, what in (
            (requests, "requests.cpu"),
            (requests, "requests.memory"),
            (limits, "limits.memory"),
        ):
            if what.partition(".")[2] not in found:
                yield pod.fault(f"{container.path}.resources.{what}", "is missing")
        if requests.get("memory") != limits.get("memory"):
            yield pod.fault(
                f"{container.path}.resources", "memory is requested and limited differently"
            )


def probe_faults(pod, container, ports, admin=None):
    """Whether the probes of a container ask it, and in time. `admin` is the port of its admin
    listener.
    """
    for kind in PROBES:
        here = f"{container.path}.{kind}"
        probe = container.spec.get(kind)
        if probe is None:
            if container.is_proxy:
                yield pod.fault(here, "is missing")
            continue
        command = probe.get("exec", {}).get("command", [])
        if "tcpSocket" in probe:
            port = probe["tcpSocket"]["port"]
            port = container.ports.get(port, port)
            if port not in ports or container.bind and split(container.bind)[0] in LOCALHOST:
                yield pod.fault(here, f"the kubelet cannot reach port {port}")
        elif "httpGet" in probe:
            request = probe["httpGet"]
            port = container.ports.get(request["port"], request["port"])
            if port != admin or port not in container.ports.values():
                yield pod.fault(here, f"port {request['port']} is not that of [admin]")
            if request.keys() - {"path", "port"}:
                yield pod.fault(here, "needs a path and a port, and no more")
            # A restart heals no app, and an app that all pods share would take all of them out.
            path = "/readyz" if kind == "readinessProbe" and pod.apps else "/livez"
            if request.get("path") != path:
                yield pod.fault(here, f"asks for {request.get('path')} instead of {path}")
            if probe.get("timeoutSeconds", 1) <= LIVEZ_S:
                yield pod.fault(here, f"timeoutSeconds cuts the {LIVEZ_S} s of /livez")
        elif command[:2] == ["/ws-proxy", "health"] and len(command) > 2:
            host, port = split(command[2])
            if host not in LOCALHOST or port not in ports:
                yield pod.fault(here, f"{command[2]} is not where the container listens")
            timeout_ms = (
                int(command[command.index("--timeout-ms") + 1])
                if "--timeout-ms" in command
                else 2000
            )
            if probe.get("timeoutSeconds", 1) * 1000 <= timeout_ms:
                yield pod.fault(here, f"timeoutSeconds cuts the probe's own {timeout_ms} ms")
        else:
            yield pod.fault(here, "is none of httpGet, tcpSocket and `/ws-proxy health HOST:PORT`")


def port_faults(pod, config):
    bound = [split(section["bind"]) for section in config["ws_proxy"]]
    ports = {port for _, port in bound}
    for host, port in bound:
        if host in LOCALHOST:
            yield pod.fault(pod.proxy.path, f"bind is {host}:{port}, where no Service gets to")
    admin = split(config["admin"]["bind"])[1] if "admin" in config else None
    ports |= {admin} - {None}
    if ports != set(pod.proxy.ports.values()):
        declared = sorted(pod.proxy.ports.values())
        yield pod.fault(f"{pod.proxy.path}.ports", f"are {declared}, but bind says {sorted(ports)}")
    yield from probe_faults(pod, pod.proxy, ports, admin)
    for app in pod.apps:
        yield from probe_faults(pod, app, {split(app.bind)[1]} if app.bind else set())


def backend_faults(pod, pods, config, services):
    backends = [
        (address, section.get("resolve") == "watch")
        for section in config["ws_proxy"]
        for address in section["backends"]
    ]
    for address, is_watched in backends:
        host, port = split(address.removeprefix("ws://"))
        if pod.apps:
            if host not in LOCALHOST:
                yield pod.fault(pod.proxy.path, f"the backend {address} is not on localhost")
            if address not in [app.bind for app in pod.apps]:
                yield pod.fault(
                    pod.proxy.path, f"no app of the pod listens on the backend {address}"
                )
        else:
            named = [service for service in services if service["metadata"]["name"] == host]
            if port not in [entry["port"] for one in named for entry in one["spec"]["ports"]]:
                yield pod.fault(pod.proxy.path, f"the backend {address} is no Service's port")
            for service in named:
                is_headless = service["spec"].get("clusterIP") == "None"
                if is_headless != is_watched:
                    problem = "is watched, but not headless" if is_watched else "is not watched"
                    yield pod.fault(pod.proxy.path, f"the backend {address} {problem}")
                # No Service translates the ports of addresses that its name leads to.
                chosen = [one for one in pods if one.has(service["spec"]["selector"])]
                apps = [app for one in chosen for app in one.apps]
                if is_headless and not all(port in app.ports.values() for app in apps):
                    yield pod.fault(pod.proxy.path, f"no pod has the port of {address}")


def setting_faults(pod, config, drain):
    if drain["delay_ms"] + drain["spread_ms"] + drain["close_grace_ms"] > drain["timeout_ms"]:
        yield pod.fault(
            pod.proxy.path,
            "[drain]: spread_ms does not fit into timeout_ms, and would be shortened",
        )
    most = sum(section.get("max_connections", 0) for section in config["ws_proxy"])
    limit = pod.proxy.spec.get("resources", {}).get("limits", {}).get("memory", "0Mi")
    needed = PROCESS_KIB + most * TUNNEL_KIB + STUCK_KIB
    if not limit.endswith("Mi") or int(limit[:-2]) * 1024 < needed:
        here = f"{pod.proxy.path}.resources.limits.memory"
        yield pod.fault(here, f"{most} connections need {needed / 1024:.0f} MiB, but it is {limit}")
    for section in config["ws_proxy"]:
        if not section.get("max_connections"):
            yield pod.fault(pod.proxy.path, "max_connections: without it, no memory limit holds")
        if not section.get("backend_lost_code"):
            yield pod.fault(pod.proxy.path, "backend_lost_code is not set")
        if not 0 < section.get("socket_buffer_bytes", 0) <= BUFFER_BYTES:
            yield pod.fault(
                pod.proxy.path, f"socket_buffer_bytes is not within 1 to {BUFFER_BYTES}"
            )
        if not 0 < section.get("ping_interval_ms", 0) <= PING_MS:
            yield pod.fault(pod.proxy.path, f"ping_interval_ms is not within 1 to {PING_MS}")


def time_faults(pod, drain):
    """Whether a stop has the time that it takes. All preStop hooks start with it, each before
    its own SIGTERM.
    """
    timeout_s = drain["timeout_ms"] / 1000
    if pod.proxy.native:
        # SIGTERM comes after the apps have ended, so a hook has to begin the drain.
        if pod.proxy.pre_stop().get("exec", {}).get("command") != ["/ws-proxy", "drain"]:
            yield pod.fault(f"{pod.proxy.path}.lifecycle.preStop", "does not run `/ws-proxy drain`")
        drained_s = timeout_s + HOOK_S
    else:
        drained_s = timeout_s + pod.proxy.held_s()
    ended_s = drained_s
    for app in pod.apps:
        held_s = app.held_s()
        # Without a native sidecar there is no way to hold the stand-in, since its image has nothing
        # to run.
        stands_in = app.args[:1] == ["echo"] and not pod.proxy.native
        if not stands_in and held_s < timeout_s + HOOK_S:
            here = f"{app.path}.lifecycle.preStop"
            yield pod.fault(
                here,
                f"holds the app for {held_s} s, "
                f"less than the drain's {timeout_s:g} s and {HOOK_S} s",
            )
        ended_s = max(ended_s, held_s + APP_S)
    grace_s = pod.spec.get("terminationGracePeriodSeconds", 30)
    if grace_s < ended_s + SPARE_S:
        here = "terminationGracePeriodSeconds"
        yield pod.fault(
            here, f"is {grace_s}, but a stop takes {ended_s:g} s, and {SPARE_S} s to spare"
        )


def service_faults(service, pods, first):
    chosen = [pod for pod in pods if pod.has(service["spec"]["selector"])]
    if not chosen:
        yield f"{named(service)}: spec.selector: selects no pod"
    for pod in chosen:
        for index, entry in enumerate(service["spec"]["ports"]):
            here = f"{named(service)}: spec.ports[{index}].targetPort"
            target = entry["targetPort"]
            found = [
                container
                for container in pod.containers
                if target
                in (container.ports if isinstance(target, str) else container.ports.values())
            ]
            if not found:
                yield f"{here}: {target} is no port of {named(pod.document)}"
            for container in found:
                if isinstance(target, str) and container.native and float(first) < 1.32:
                    yield f"{here}: names of a native sidecar's ports are not found before 1.32"
                if pod.proxy and not container.is_proxy:
                    yield f"{here}: {target} goes past ws-proxy"
                if container.bind and split(container.bind)[0] in LOCALHOST:
                    yield f"{here}: {target} listens on localhost only"


def file_faults(files):
    """What is wrong with the configurations of deploy/, by their paths."""
    for path, text in files.items():
        config = tomllib.loads(text)
        if config.get("watch_config_ms") != WATCH_MS:
            yield f"{path}: watch_config_ms is not {WATCH_MS}"
        host, port = split(config.get("admin", {}).get("bind", ":0"))
        if port != 9600:
            yield f"{path}: [admin] is not on port 9600"
        # In Kubernetes the kubelet asks.
        if (host in LOCALHOST) == ("kubernetes" in Path(path).parts):
            yield f"{path}: [admin] is on {host}"


# --- whether faults are found


def broken_variants(form):
    """What may be wrong, how to make it so, and what has to be said of it then."""

    def pods(documents):
        return map(Pod, of_kind(documents, "Deployment"))

    def pod(documents):
        return next(pod.spec for pod in pods(documents) if pod.proxy)

    def proxy(documents):
        return next(pod.proxy.spec for pod in pods(documents) if pod.proxy)

    def app(documents):
        return next(pod.apps[0].spec for pod in pods(documents) if pod.apps)

    def front(documents):
        specs = [service["spec"] for service in of_kind(documents, "Service")]
        return next(spec for spec in specs if spec["ports"][0]["port"] == 80)

    def budget(documents):
        return of_kind(documents, "PodDisruptionBudget")[0]

    def of_proxy(change):
        return lambda documents: change(proxy(documents))

    def of_context(**fields):
        return of_proxy(lambda spec: spec["securityContext"].update(fields))

    def of_config(old, new):
        def change(documents):
            data = of_kind(documents, "ConfigMap")[0]["data"]
            assert old in data["ws-proxy.toml"], old
            data["ws-proxy.toml"] = data["ws-proxy.toml"].replace(old, new)

        return change

    yield (
        "a mistyped field",
        of_context(readOnlyRootFilesytem=True),
        "'readOnlyRootFilesytem' was unexpected",
    )
    yield (
        "text for a number",
        lambda d: of_kind(d, "Deployment")[0]["spec"].update(replicas="2"),
        "spec.replicas",
    )
    yield "an unknown kind", lambda d: d[0].update(kind="Konfig"), "there is no schema"
    yield (
        "an old API",
        lambda d: budget(d).update(apiVersion="policy/v1beta1"),
        "there is no schema",
    )

    yield "a privileged container", of_context(privileged=True), "privileged"
    yield "a writable root", of_context(readOnlyRootFilesystem=False), "readOnlyRootFilesystem"
    yield "a root user", of_context(runAsUser=0), "runAsUser"
    yield (
        "kept capabilities",
        of_proxy(lambda spec: spec["securityContext"].pop("capabilities")),
        "capabilities",
    )
    yield "an unconfined app", lambda d: app(d).pop("securityContext"), "allowPrivilegeEscalation"
    yield "no seccomp", lambda d: pod(d)["securityContext"].pop("seccompProfile"), "seccompProfile"
    yield (
        "a token",
        lambda d: pod(d).pop("automountServiceAccountToken"),
        "automountServiceAccountToken",
    )
    yield (
        "shared processes",
        lambda d: pod(d).update(shareProcessNamespace=True),
        "shareProcessNamespace",
    )
    yield "no tag", of_proxy(lambda spec: spec.update(image="ws-proxy")), "has no tag"
    yield "latest", lambda d: app(d).update(image="registry:5000/chat:latest"), "latest"
    yield (
        "another version",
        of_proxy(lambda spec: spec.update(image="ws-proxy:0.0.9")),
        "Cargo.toml",
    )
    yield (
        "little memory",
        of_proxy(
            lambda spec: spec["resources"].update(
                requests={"cpu": "1", "memory": "64Mi"}, limits={"memory": "64Mi"}
            )
        ),
        "connections need",
    )
    yield (
        "a small request",
        of_proxy(lambda spec: spec["resources"]["requests"].update(memory="1Mi")),
        "differently",
    )

    yield (
        "a faulty configuration",
        of_config("ping_interval_ms", "ping_intervall_ms"),
        "ping_intervall_ms",
    )
    yield (
        "a configuration that is not mounted",
        of_proxy(lambda spec: spec.pop("volumeMounts")),
        "--config",
    )
    yield (
        "a hash",
        lambda d: of_kind(d, "ConfigMap")[0]["metadata"].update(name="ws-proxy-5f6h7k2m9t"),
        "has a hash",
    )
    yield "a fixed one", lambda d: of_kind(d, "ConfigMap")[0].update(immutable=True), "immutable"
    yield (
        "a mounted file",
        of_proxy(
            lambda spec: spec["volumeMounts"].append(
                {"name": "ws-proxy", "mountPath": "/x.toml", "subPath": "ws-proxy.toml"}
            )
        ),
        "subPath",
    )
    yield (
        "a file that is not watched",
        of_config("watch_config_ms = 2000", "watch_config_ms = 0"),
        "watch_config_ms",
    )
    yield (
        "commands that do not find the file",
        of_proxy(lambda spec: spec.update(workingDir="/")),
        "would not find",
    )
    yield "no admin listener", of_config("[admin]", "[other]"), "[admin] is missing"
    yield "[admin] on localhost", of_config("0.0.0.0:9600", "127.0.0.1:9600"), "no kubelet gets to"
    yield "another port in [admin]", of_config("0.0.0.0:9600", "0.0.0.0:9601"), "that of [admin]"
    yield (
        "the admin listener in a Service",
        lambda d: front(d)["ports"][0].update(targetPort=9600),
        "leads to the admin listener",
    )
    yield (
        "the admin listener in a Service by name",
        lambda d: front(d)["ports"][0].update(targetPort="admin"),
        "leads to the admin listener",
    )
    yield (
        "metrics elsewhere",
        lambda d: next(pod for pod in pods(d) if pod.proxy).document["spec"]["template"][
            "metadata"
        ]["annotations"].update({"prometheus.io/port": "8080"}),
        "prometheus.io/port is not 9600",
    )
    yield (
        "no metrics",
        lambda d: next(pod for pod in pods(d) if pod.proxy).document["spec"]["template"][
            "metadata"
        ].pop("annotations"),
        "prometheus.io/scrape",
    )
    yield (
        "losses not announced",
        of_config("backend_lost_code = 1014", "backend_lost_code = 0"),
        "backend_lost_code",
    )
    yield (
        "buffers without a bound",
        of_config("socket_buffer_bytes", "# socket_buffer_bytes"),
        "socket_buffer_bytes",
    )
    yield (
        "no connection limit",
        of_config("max_connections", "# max_connections"),
        "max_connections",
    )
    yield (
        "rare pings",
        of_config("ping_interval_ms = 25000", "ping_interval_ms = 60000"),
        "ping_interval_ms",
    )
    yield "a spread that is shortened", of_config("delay_ms = 5000", "delay_ms = 9000"), "shortened"

    yield (
        "another port in bind",
        of_config("0.0.0.0:8080", "0.0.0.0:8081"),
        "bind says [8081, 9600]",
    )
    yield "bind on localhost", of_config("0.0.0.0:8080", "127.0.0.1:8080"), "no Service gets to"
    yield "another backend port", of_config(':9000"]', ':9001"]'), "the backend"
    yield (
        "a probe of another port",
        of_proxy(lambda spec: spec["livenessProbe"]["httpGet"].update(port="ws")),
        "port ws is not that of [admin]",
    )
    yield (
        "a probe of no port",
        of_proxy(lambda spec: spec["ports"].pop()),
        "port admin is not that of [admin]",
    )
    yield (
        "a probe of another page",
        of_proxy(lambda spec: spec["startupProbe"]["httpGet"].update(path="/metrics")),
        "asks for /metrics instead of /livez",
    )
    yield (
        "a restart for an app that is away",
        of_proxy(lambda spec: spec["livenessProbe"]["httpGet"].update(path="/readyz")),
        "asks for /readyz instead of /livez",
    )
    yield (
        "a probe by another host",
        of_proxy(lambda spec: spec["livenessProbe"]["httpGet"].update(host="example.com")),
        "and no more",
    )
    yield (
        "a probe that is cut",
        of_proxy(lambda spec: spec["readinessProbe"].pop("timeoutSeconds")),
        "timeoutSeconds",
    )
    yield (
        "a mistyped flag",
        of_proxy(
            lambda spec: spec.update(
                livenessProbe={
                    "exec": {"command": ["/ws-proxy", "health", "127.0.0.1:8080", "--timeout"]},
                    "timeoutSeconds": 3,
                }
            )
        ),
        "Unrecognized argument: --timeout",
    )
    yield (
        "a command that is deprecated",
        of_proxy(
            lambda spec: spec.update(
                livenessProbe={"exec": {"command": ["/ws-proxy", "probe", "127.0.0.1:8080"]}}
            )
        ),
        "is none of",
    )
    yield (
        "a mistyped subcommand",
        lambda d: app(d)["args"].__setitem__(0, "ecko"),
        "Unrecognized argument: ecko",
    )
    yield (
        "an HTTP probe",
        of_proxy(
            lambda spec: spec.update(livenessProbe={"httpGet": {"path": "/healthz", "port": 8080}})
        ),
        "livenessProbe",
    )
    yield "no readiness", of_proxy(lambda spec: spec.pop("readinessProbe")), "readinessProbe"
    yield "another targetPort", lambda d: front(d)["ports"][0].update(targetPort=8081), "targetPort"
    yield "another selector", lambda d: front(d)["selector"].update(tier="web"), "selects no pod"
    yield (
        "a budget for nobody",
        lambda d: budget(d)["spec"]["selector"].update(matchLabels={"app": "other"}),
        "selects no pod",
    )

    yield (
        "a short grace period",
        lambda d: pod(d).update(terminationGracePeriodSeconds=20),
        "a stop takes",
    )
    yield "a long drain", of_config("\ntimeout_ms = ", "\ntimeout_ms = 9"), "a stop takes"

    if form != "sidecar-classic":
        yield (
            "no grace period",
            lambda d: pod(d).pop("terminationGracePeriodSeconds"),
            "a stop takes",
        )
    if form == "standalone":
        yield (
            "readiness by an app that all share",
            of_proxy(lambda spec: spec["readinessProbe"]["httpGet"].update(path="/readyz")),
            "asks for /readyz instead of /livez",
        )
    else:
        yield (
            "readiness without the app",
            of_proxy(lambda spec: spec["readinessProbe"]["httpGet"].update(path="/livez")),
            "asks for /livez instead of /readyz",
        )
        yield (
            "a probe of another app's port",
            lambda d: app(d)["readinessProbe"]["exec"]["command"].__setitem__(2, "127.0.0.1:9001"),
            "127.0.0.1:9001 is not where the container listens",
        )
        yield (
            "an app's probe that is cut",
            lambda d: app(d)["readinessProbe"].pop("timeoutSeconds"),
            "cuts the probe's own 2000 ms",
        )
    if form == "sidecar":
        yield "an app that is not held", lambda d: app(d).pop("lifecycle"), "holds the app for 0 s"
        yield (
            "an app that is held too short",
            lambda d: app(d)["lifecycle"]["preStop"]["sleep"].update(seconds=20),
            "holds the app for 20 s",
        )
        yield (
            "no begin of the drain",
            of_proxy(lambda spec: spec.pop("lifecycle")),
            "does not run `/ws-proxy drain`",
        )
        yield (
            "a sidecar's port by name",
            lambda d: front(d)["ports"][0].update(targetPort="ws"),
            "before 1.32",
        )
        yield "a backend elsewhere", of_config("127.0.0.1:9000", "chat:9000"), "not on localhost"
    if form == "standalone":
        yield (
            "a slept-away grace period",
            of_proxy(
                lambda spec: spec.update(
                    lifecycle={"preStop": {"exec": {"command": ["sleep", "10"]}}}
                )
            ),
            "a stop takes 40 s",
        )

        def of_app(**fields):
            def change(documents):
                specs = [service["spec"] for service in of_kind(documents, "Service")]
                next(spec for spec in specs if spec["ports"][0]["port"] != 80).update(fields)

            return change

        yield (
            "a watched name of one address",
            of_app(clusterIP="10.0.0.9"),
            "is watched, but not headless",
        )
        yield "a headless Service", of_config('resolve = "watch"', ""), "is not watched"

        def translate(documents):
            entry = {"name": "ws", "port": 9001, "targetPort": "ws"}
            of_app(ports=[entry])(documents)
            of_config("chat-backend:9000", "chat-backend:9001")(documents)

        yield "a port that nobody translates", translate, "no pod has the port"
        yield (
            "an app on localhost",
            lambda d: app(d)["args"].__setitem__(2, "127.0.0.1:9000"),
            "localhost only",
        )


def broken_files():
    """What may be wrong with a file, whose it is, how to make it so, and what has to be said."""
    local = ("deploy/ws-proxy.toml", "deploy/systemd/ws-proxy.toml")
    for path in local:
        yield "a file that is not watched", path, "watch_config_ms = 2000", "", "watch_config_ms"
        yield "an open port", path, "127.0.0.1:9600", "0.0.0.0:9600", "[admin] is on 0.0.0.0"
        yield "another port", path, "127.0.0.1:9600", "127.0.0.1:9601", "not on port 9600"
    kubernetes = "deploy/kubernetes/sidecar/ws-proxy.toml"
    yield "a closed port", kubernetes, "0.0.0.0:9600", "127.0.0.1:9600", "[admin] is on 127.0.0.1"


# --- all of it


def built(kubectl, form):
    done = subprocess.run(
        [kubectl, "kustomize", f"deploy/kubernetes/{form}"], capture_output=True, text=True
    )
    if done.returncode != 0:
        sys.exit(f"deploy/kubernetes/{form}: {done.stderr.strip()}")
    return list(yaml.safe_load_all(done.stdout))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kubectl", required=True)
    parser.add_argument("--ws-proxy", required=True)
    given = parser.parse_args()
    with open("Cargo.toml", "rb") as file:
        version = tomllib.load(file)["package"]["version"]

    def check(documents, versions):
        # What no schema takes need not make sense to the rest.
        return schema_faults(documents, versions) or list(
            faults(documents, FIRST[form], version, given.ws_proxy)
        )

    files = {str(path): path.read_text() for path in Path("deploy").rglob("*.toml")}
    # The image's, Compose's, systemd's, and two of Kubernetes.
    assert len(files) >= 5, files.keys()
    found = list(file_faults(files))
    failed = bool(found)
    print(*found, sep="\n", end="\n" if found else "", file=sys.stderr)
    for what, path, old, new, said in [] if found else broken_files():
        assert old in files[path], f"{path}: {old}"
        found = list(file_faults({path: files[path].replace(old, new)}))
        if not any(said in fault for fault in found):
            failed = True
            print(f"{path}: this check does not find {what}; it says {found}", file=sys.stderr)
    if not failed:
        print(f"{len(files)} configurations; {len(list(broken_files()))} broken ones tried")

    for form, first in FIRST.items():
        versions = [first, *CURRENT]
        documents = built(given.kubectl, form)
        found = check(documents, versions)
        for fault in found:
            print(f"deploy/kubernetes/{form}: {fault}", file=sys.stderr)
        if found:
            failed = True
            continue

        variants = list(broken_variants(form))
        for what, spoil, said in variants:
            spoiled = copy.deepcopy(documents)
            spoil(spoiled)
            found = check(spoiled, versions[-1:])
            if not any(said in fault for fault in found):
                failed = True
                print(
                    f"deploy/kubernetes/{form}: this check does not find {what}; it says {found}",
                    file=sys.stderr,
                )
        versions = ", ".join(versions)
        print(
            f"{form}: {len(documents)} documents, good for Kubernetes {versions}; "
            f"{len(variants)} broken ones tried"
        )
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
