"""Runs code in a kernel of Jupyter, through one address of ws-proxy: its API first, then the
kernel's WebSocket.

Arguments: the program.
"""

import contextlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import websocket

PATIENCE = 30
TOKEN = "0123456789abcdef"


@contextlib.contextmanager
def running(*command, until, **options):
    """Runs a program until the end, from the line with these words on, which is given."""
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen([*map(str, command)], **pipe, **options)
    try:
        line = next((line for line in process.stdout if until in line), None)
        assert line, f"{command} ended before it said {until}"
        yield process, line
    finally:
        process.kill()
        process.communicate()


class Jupyter:
    """Its API on one connection, asked as by a page in a browser: with cookies, and from an origin
    that Jupyter compares with the Host that it gets.
    """

    def __init__(self, port):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        self.port, self.origin, self.cookies = port, f"http://127.0.0.1:{port}", {}

    def ask(self, method, path, body=None):
        text = None if body is None else json.dumps(body)
        headers = {"Cookie": self.cookie(), "Origin": self.origin}
        if "_xsrf" in self.cookies:
            headers["X-XSRFToken"] = self.cookies["_xsrf"]
        self.connection.request(method, path, text, headers)
        answer = self.connection.getresponse()
        for value in answer.headers.get_all("Set-Cookie", []):
            name, value = value.split(";")[0].split("=", 1)
            self.cookies[name] = value
        return answer.status, answer.read()

    def cookie(self):
        return "; ".join(f"{name}={value}" for name, value in self.cookies.items())

    def connect(self, kernel, origin):
        return websocket.create_connection(
            f"ws://127.0.0.1:{self.port}/api/kernels/{kernel}/channels",
            timeout=PATIENCE,
            cookie=self.cookie(),
            origin=origin,
            http_no_proxy=["127.0.0.1"],
        )


def execute(socket, code):
    """Returns what the code prints."""
    header = {
        "msg_id": uuid.uuid4().hex,
        "msg_type": "execute_request",
        "session": uuid.uuid4().hex,
        "username": "",
        "version": "5.3",
    }
    content = {"code": code, "silent": False}
    message = {"channel": "shell", "header": header, "content": content}
    socket.send(json.dumps({**message, "parent_header": {}, "metadata": {}}))
    printed = ""
    while True:
        message = json.loads(socket.recv())
        if message["parent_header"].get("msg_id") != header["msg_id"]:
            continue
        if message["msg_type"] == "stream":
            printed += message["content"]["text"]
        elif message["content"].get("execution_state") == "idle":
            return printed


def check(port):
    jupyter = Jupyter(port)
    assert jupyter.ask("GET", "/api/kernels")[0] == 403
    # A form, whose token changes need, and the address that Jupyter prints.
    for path in ["/login", f"/api/status?token={TOKEN}"]:
        assert jupyter.ask("GET", path)[0] == 200, path
    assert jupyter.ask("GET", "/api/kernels") == (200, b"[]")
    status, text = jupyter.ask("POST", "/api/kernels", {"name": "python3"})
    assert status == 201, text
    kernel = json.loads(text)["id"]
    print("ok    a kernel is started by the API")

    try:
        jupyter.connect(kernel, "http://other.example")
        raise AssertionError("Jupyter took a foreign Origin")
    except websocket.WebSocketBadStatusException as refusal:
        assert refusal.status_code == 403, refusal
    socket = jupyter.connect(kernel, jupyter.origin)
    assert execute(socket, "print(1)") == "1\n"
    large = execute(socket, "print('x' * 300_000)")
    assert large == "x" * 300_000 + "\n", len(large)
    print("ok    what it prints comes through its WebSocket")

    content = "line\n" * 300_000
    file = {"type": "file", "format": "text", "content": content}
    status, text = jupyter.ask("PUT", "/api/contents/large.txt", file)
    assert status == 201, text
    assert jupyter.ask("GET", "/files/large.txt") == (200, content.encode())
    print("ok    a file goes there and back")

    assert jupyter.ask("DELETE", f"/api/kernels/{kernel}") == (204, b"")
    assert jupyter.ask("GET", "/api/kernels") == (200, b"[]")
    socket.close()


def main():
    program = sys.argv[1]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "notebooks").mkdir()
        unix = folder / "jupyter.sock"
        jupyter = running(
            *(sys.executable, "-m", "jupyter_server", "--no-browser", "--allow-root"),
            *(f"--ServerApp.sock={unix}", f"--IdentityProvider.token={TOKEN}"),
            f"--ServerApp.root_dir={folder / 'notebooks'}",
            until="is running at",
            # Nothing of a user's own settings and of his kernels.
            env={**os.environ, "HOME": str(folder), "JUPYTER_PREFER_ENV_PATH": "1"},
        )
        stack.enter_context(jupyter)
        config = folder / "ws-proxy.toml"
        config.write_text(
            f"""
            [[ws_proxy]]
            bind = "127.0.0.1:0"
            backends = ["unix:{unix}"]
            plain_http = "forward"
            host = "preserve"
            """
        )
        proxy = running(program, "--config", config, until="event=listening")
        process, line = stack.enter_context(proxy)
        check(int(line.split("address=127.0.0.1:")[1].split()[0]))
        process.terminate()
        log, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, log
        faults = [line for line in log.splitlines() if "level=warn" in line or "level=error" in line]
        assert not faults, faults


if __name__ == "__main__":
    main()
