"""Opens what comes with WebSockets in a headless Chromium, through one address of ws-proxy each:
Vite's dev server, whose modules are replaced while the page is open, and a Socket.IO server with its
own client, beside a stream of events.
"""

import argparse
import asyncio
import contextlib
import http.client
import sys
import tempfile
from pathlib import Path

import websockets
from chromium import Chromium
from program import Program, free_ports

NAME = "app.example"


class Setting:
    """The servers, and the configuration of a proxy in front of them."""

    def __init__(self, arguments, folder):
        self.binary, self.environment = arguments.ws_proxy, arguments.environment
        self.ports = free_ports(4)
        self.app, self.site, vite, socketio = self.ports
        self.servers = [
            (
                Program(
                    "node",
                    self.environment / "node_modules/vite/bin/vite.js",
                    *("--host", "127.0.0.1", "--port", vite, "--strictPort"),
                    cwd=self.environment / "app",
                ),
                "ready in",
            ),
            (Program("node", self.environment / "site.mjs", socketio), "listening"),
        ]
        self.file = Path(folder) / "ws-proxy.toml"
        self.file.write_text(
            f"""
            [log]
            level = "debug"
            [drain]
            spread_ms = 0
            [[ws_proxy]]
            bind = "127.0.0.1:{self.app}"
            backends = ["127.0.0.1:{vite}"]
            plain_http = "forward"
            host = "preserve"
            [[ws_proxy]]
            bind = "127.0.0.1:{self.site}"
            backends = ["127.0.0.1:{socketio}"]
            plain_http = "forward"
            """
        )

    @contextlib.asynccontextmanager
    async def proxy(self):
        async with Program(self.binary, "--config", self.file) as proxy:
            await proxy.says("event=listening", "event=listening")
            yield proxy


def expect_all_from(page, port):
    """Asserts that the page asked nobody but this port, and complained of nothing."""
    assert page.requests
    places = (f"http://{NAME}:{port}/", f"ws://{NAME}:{port}/", "data:")
    foreign = [url for url in page.requests if not url.startswith(places)]
    assert not foreign, foreign
    assert not page.complaints, page.complaints


async def modules_are_replaced(page, setting):
    app = setting.environment / "app"
    await page.go(f"http://{NAME}:{setting.app}/")
    await page.when('greeting.textContent === "first" && session.textContent === "function"')
    color = 'getComputedStyle(greeting).color === "rgb(1, 2, 3)"'
    assert await page.js(color)
    # Vite's client falls back to Vite's own port where this one does not work.
    [socket] = [url for url in page.requests if url.startswith("ws:")]
    assert socket.startswith(f"ws://{NAME}:{setting.app}/?token="), socket
    assert any("/.vite/deps/" in url for url in page.requests), page.requests
    print("ok    Vite: a page with its modules")

    await page.js("window.kept = true")
    (app / "greeting.js").write_text('export const greeting = "second";\n')
    await page.when('greeting.textContent === "second"')
    style = app / "style.css"
    style.write_text(style.read_text().replace("1, 2, 3", "4, 5, 6"))
    await page.when('getComputedStyle(greeting).color === "rgb(4, 5, 6)"')
    assert await page.js("window.kept"), "the page was loaded again"
    print("ok    Vite: modules are replaced in an open page")

    expect_all_from(page, setting.app)


async def vite_judges(setting):
    """Vite's own checks see the client's name and token."""
    for host, status in [(f"{NAME}:{setting.app}", 200), ("other.example", 403)]:
        connection = http.client.HTTPConnection("127.0.0.1", setting.app, timeout=10)
        connection.request("GET", "/main.js", headers={"Host": host})
        assert connection.getresponse().status == status, host
        connection.close()
    try:
        await websockets.connect(
            f"ws://127.0.0.1:{setting.app}/?token=wrong",
            origin=f"http://{NAME}:{setting.app}",
            subprotocols=["vite-hmr"],
            proxy=None,
        )
        raise AssertionError("Vite took a wrong token")
    except websockets.InvalidStatus as refusal:
        assert refusal.response.status_code == 400, refusal
    print("ok    Vite: its checks of Host and token hold")


async def socketio_and_events(page, setting):
    await page.go(f"http://{NAME}:{setting.site}/")
    await page.when('transport.textContent === "websocket" && events.textContent === "new"')
    requests = [url.split(f":{setting.site}")[1] for url in page.requests]
    session = "/socket.io/?EIO=4&transport="
    assert "/socket.io/socket.io.js" in requests, requests
    assert any(one.startswith(f"{session}polling") for one in requests), requests
    [socket] = [url for url in page.requests if url.startswith("ws:")]
    assert f"{session}websocket&sid=" in socket, socket
    await page.js('ask("a word")')
    await page.when('echo.textContent === "a word"')
    print("ok    Socket.IO: a browser polls, then upgrades")

    post = 'fetch("/{}", {{ method: "POST" }}).then((answer) => answer.text())'
    assert await page.js(post.format("event")) == "1"
    await page.when('events.textContent === "new,event 1" && pushed.textContent === "event 1"')
    await page.js(post.format("end"))
    await page.when('events.textContent === "new,event 1,after 1"')
    assert await page.js(post.format("event")) == "1"
    await page.when('events.textContent === "new,event 1,after 1,event 2"')
    print("ok    EventSource: events as they come, and on after an end")

    large = """(async () => {
      const body = new Uint8Array(5_000_000).map((_, at) => at * at);
      const answer = await fetch("/echo", { method: "POST", body });
      const back = new Uint8Array(await answer.arrayBuffer());
      return back.length === body.length && back.every((byte, at) => byte === body[at]);
    })()"""
    assert await page.js(large)
    print("ok    a body of 5 MB goes there and back")
    expect_all_from(page, setting.site)


async def goes_on_after_a_restart(page):
    """Vite's client asks for a WebSocket until it gets one, and loads the page again."""
    await page.when('!window.kept && greeting.textContent === "second"')
    print("ok    Vite: the page goes on after a restart of the proxy")


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--ws-proxy", required=True)
    parser.add_argument("--chromium", required=True)
    parser.add_argument("--environment", required=True, type=Path)
    arguments = parser.parse_args()
    async with contextlib.AsyncExitStack() as stack:
        setting = Setting(arguments, stack.enter_context(tempfile.TemporaryDirectory()))
        for server, words in setting.servers:
            await stack.enter_async_context(server)
            await server.says(words)
        resolve = f"--host-resolver-rules=MAP {NAME} 127.0.0.1"
        browser = await stack.enter_async_context(Chromium(arguments.chromium, resolve))
        vite, site = await browser.page(), await browser.page()
        async with setting.proxy() as proxy:
            await modules_are_replaced(vite, setting)
            await vite_judges(setting)
            await socketio_and_events(site, setting)
            # It would last as long as the drain may.
            await site.js("stream.close()")
            # Vite asks for a hidden page's server once only.
            await vite.call("Page.bringToFront")
            log = await proxy.stop()
        async with setting.proxy() as proxy:
            await goes_on_after_a_restart(vite)
            log += await proxy.stop()
    lines = log.splitlines()
    for parts in [
        # Of the pages that were loaded again.
        [" status=304 "],
        # The stream of events, which its page closed.
        [" status=200 reason=client_gone ", ' path="/events" '],
    ]:
        assert any(all(part in line for part in parts) for line in lines), (parts, log)
    faults = [
        line
        for line in lines
        if " level=warn " in line or " level=error " in line or " reason=cut " in line
    ]
    assert not faults, faults


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
