"""Uses the page of the admin listener as people do, in a headless Chromium: with real WebSockets
through a real proxy, by mouse and by keyboard, in both colour schemes, on a desk and on a phone.

Writes pictures into a folder, for people to look at.
"""

import argparse
import asyncio
import contextlib
import socket
import sys
import tempfile
from pathlib import Path

import websockets
from chromium import PATIENCE, Chromium
from program import Program, free_ports

TOKEN = "0123456789abcdef"
HOSTILE = "<img src=x onerror=alert(1)>"
FEED = 'feed <b>"x"</b>'
# Keys of the DevTools protocol: name, code, text.
ENTER, BACKSPACE = ("Enter", 13, "\r"), ("Backspace", 8)
MODIFIER_CONTROL = 2
SCREENS = [("desktop", 1280, 800), ("phone", 360, 740), ("tiny", 320, 568)]


class Setting:
    """Two echo backends, and the configuration of a proxy with sections in front of them: two for
    traffic, and two that have a backend each on which nobody listens.
    """

    def __init__(self, binary, folder):
        self.binary, self.folder = binary, Path(folder)
        self.chat, self.feed, self.named, self.checked, self.admin, *ports = free_ports(8)
        self.dead, *self.backends = ports
        self.origin = f"http://127.0.0.1:{self.admin}"
        # Each is a backend of its own.
        found = socket.getaddrinfo("localhost", self.backends[0], type=socket.SOCK_STREAM)
        self.addresses = len({address for *_, address in found})

    def proxy(self, admin="", backends=()):
        one, other = (f"127.0.0.1:{port}" for port in self.backends)
        many = ", ".join(f'"{backend}"' for backend in [other, *backends])
        file = self.folder / "ws-proxy.toml"
        file.write_text(
            f"""
            workers = 2
            [admin]
            bind = "127.0.0.1:{self.admin}"
            {admin}
            [drain]
            delay_ms = 60000
            timeout_ms = 90000
            [[ws_proxy]]
            name = "chat"
            bind = "127.0.0.1:{self.chat}"
            backends = ["{one}", "{other}"]
            [[ws_proxy]]
            name = '{FEED}'
            bind = "127.0.0.1:{self.feed}"
            backends = [{many}]
            max_connections = 1000
            [[ws_proxy]]
            name = "named"
            bind = "127.0.0.1:{self.named}"
            backends = ["127.0.0.1:{self.dead}", "localhost:{self.backends[0]}"]
            resolve = "watch"
            max_failures = 1
            eject_ms = 600000
            [[ws_proxy]]
            name = "checked"
            bind = "127.0.0.1:{self.checked}"
            backends = ["127.0.0.1:{self.dead}", {{ address = "{one}", weight = 3 }}]
            [ws_proxy.health_check]
            interval_ms = 200
            """
        )
        return Program(self.binary, "--config", file)

    async def tunnel(self, port, path, **headers):
        return await websockets.connect(
            f"ws://127.0.0.1:{port}{path}", additional_headers=headers, proxy=None
        )


async def chatter(socket):
    """Sends messages, each as soon as the last one is back."""
    with contextlib.suppress(websockets.ConnectionClosed):
        while True:
            await socket.send("a message that goes to the backend and back")
            await socket.recv()
            await asyncio.sleep(0.02)


async def open_page(browser, origin, token=None):
    page = await browser.page()
    await page.call(
        "Page.addScriptToEvaluateOnNewDocument",
        source="""window.violations = [];
        document.addEventListener("securitypolicyviolation",
          (event) => violations.push(`${event.violatedDirective} ${event.blockedURI}`));""",
    )
    if token:
        await page.types_the_token(token)
    await page.looks(1280, 800, "light")
    await page.go(f"{origin}/")
    return page


def text_is(selector, text):
    return f'document.querySelector("{selector}").textContent === "{text}"'


async def rows(page, table, column):
    return await page.js(
        f"""[...document.querySelectorAll("#{table}-table tbody tr")]
        .map((row) => row.children[{column}].firstChild.data)"""
    )


async def show(page, view):
    await page.click(f'nav a[href="#{view}"]')
    await page.when(f'!document.getElementById("{view}-view").hidden')


async def replace(page, text):
    await page.press("a", 65, modifiers=MODIFIER_CONTROL)
    await page.press(*BACKSPACE)
    await page.type(text)


async def charts_move(page):
    label = 'document.querySelector("#chart-messages svg").getAttribute("aria-label")'
    path = 'document.querySelector("#chart-messages path.first").getAttribute("d")'
    for chart in ["messages", "bytes"]:
        for line in [1, 2]:
            value = f"#chart-{chart} dl div:nth-child({line}) dd"
            await page.when(f'parseFloat(document.querySelector("{value}").textContent) > 0')
    for _ in range(3):
        before = await page.js(path)
        await page.when(f"{path} !== {before!r}")
    assert "of clients" in await page.js(label), await page.js(label)
    await page.when(text_is("#chart-tunnels dd", "9"))
    await page.js('scope.value = scope.options[2].value; scope.dispatchEvent(new Event("change"))')
    await page.when(text_is("#chart-tunnels dd", "3"))
    assert await rows(page, "sections", 0) == [FEED]
    await page.js('scope.value = ""; scope.dispatchEvent(new Event("change"))')


async def tables_by_keyboard(page):
    await show(page, "tunnels")
    await page.when('document.querySelectorAll("#tunnels-table tbody tr").length === 9')
    text = await page.js("document.documentElement.outerHTML")
    assert "secret" not in text, "a query is on the page"
    assert not await page.js('document.querySelector("main img, main b")'), "text became markup"
    assert f"for {HOSTILE}" in await page.text("#tunnels-table")

    await page.tab_to("#tunnels-filter")
    await page.type("rooms/3")
    await page.when('document.querySelectorAll("#tunnels-table tbody tr").length === 1')
    assert await page.text("#tunnels-table .note") == "1 found"
    await replace(page, "nothing like it")
    await page.when(text_is("#tunnels-table .none", "Nothing matches the filter."))
    await replace(page, " ")
    await page.when('document.querySelectorAll("#tunnels-table tbody tr").length === 9')

    await page.tab_to("#tunnels-table th:nth-child(3) button")
    for order in ["ascending", "descending"]:
        await page.press(*ENTER)
        await page.when(f'document.querySelector("th:nth-child(3)[aria-sort={order}]")')
        paths = await rows(page, "tunnels", 2)
        assert paths == sorted(paths, reverse=order == "descending") and len(paths) == 9, paths
    # New values leave the focus where it is.
    bytes_sent = "#tunnels-table tbody td:nth-child(7)"
    before = await page.text(bytes_sent)
    await page.when(f'document.querySelector("{bytes_sent}").textContent !== {before!r}')
    assert await page.js('document.activeElement.textContent === "Path"')


async def close_by_keyboard(page, client):
    await page.tab_to("#tunnels-filter")
    await page.type("rooms/5")
    await page.when('document.querySelectorAll("#tunnels-table tbody tr").length === 1')
    await page.tab_to("#tunnels-table td button")
    await page.press(*ENTER)
    await page.when("dialog.open && dialog.contains(document.activeElement)")
    await page.tab_to("#code")
    await replace(page, "1005")
    await page.press(*ENTER)
    await page.when('problem.textContent.includes("sendable")')
    await page.tab_to("#code")
    await replace(page, "1008")
    await page.tab_to("#reason")
    await replace(page, "tidying up")
    await page.press(*ENTER)
    await page.when("!dialog.open")
    async with asyncio.timeout(PATIENCE):
        await client.wait_closed()
    assert (client.close_code, client.close_reason) == (1008, "tidying up")
    await page.when('said.textContent.includes("is being closed")')
    await page.when('document.querySelectorAll("#tunnels-table tbody tr").length === 0')
    assert await page.js("document.activeElement !== document.body"), "the focus is lost"
    await page.tab_to("#tunnels-filter")
    await replace(page, " ")

    await show(page, "endings")
    await page.when('document.querySelectorAll("#endings-table tbody tr").length === 1')
    cells = [(await rows(page, "endings", at))[0] for at in range(8)]
    assert cells[2] == "admin" and cells[3] == "client 1008, proxy 1008", cells
    assert cells[6] == "/rooms/5", cells
    assert await page.text("#why") == "admin1"


async def backends_show_their_health(page):
    """A backend that was ejected, one that fails its checks, and the addresses of a name."""
    for section, state, reason in [
        ("named", "ejected", "connect failure"),
        ("checked", "unhealthy", "check failed: connect failure"),
        ("checked", "healthy", "check passed"),
    ]:
        await page.when(
            f"""[...document.querySelectorAll("#backends-table tbody tr")].some((row) => {{
              const text = (at) => row.children[at].textContent;
              return text(1) === "{section}" && text(2).startsWith("{state}{reason}, for ");
            }})"""
        )
    await page.when(
        """[...document.querySelectorAll("#backends-table tbody tr")]
        .filter((row) => row.children[0].textContent.includes("localhost")).length"""
    )


async def it_suits_everybody(page, pictures):
    """Sizes, colours and names; the pictures."""
    for view in ["overview", "tunnels", "endings"]:
        await show(page, view)
        await page.when(f'document.querySelector("#{view}-view tbody tr")')
        for name, width, height in SCREENS:
            for scheme in ["light", "dark"]:
                await page.looks(width, height, scheme, phone=width < 500)
                wide, inner = await page.js(
                    "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
                )
                assert wide <= inner == width, f"{view} is {wide} wide on {width}"
                if width < 500:
                    cut = await page.js(
                        """[...document.querySelectorAll(".scroll")]
                        .filter((one) => one.scrollWidth > one.clientWidth).length"""
                    )
                    assert not cut, f"{view}: {cut} tables have to be scrolled on {width}"
                faint = await page.faint()
                assert not faint, f"{view}, {scheme}: {faint}"
                if name != "tiny":
                    await page.picture(pictures / f"{view}-{name}-{scheme}.png")
        await page.looks(1280, 800, "light")
        tree = await page.call("Accessibility.getFullAXTree")
        counted = {}
        for node in tree["nodes"]:
            role = node.get("role", {}).get("value")
            counted[role] = counted.get(role, 0) + 1
            if role in ("button", "link", "searchbox", "combobox", "table", "image", "region"):
                assert node["name"]["value"], f"{view}: a {role} without a name"
        assert counted["table"] == (2 if view == "overview" else 1), counted
        assert counted["rowheader"] and counted["columnheader"] and counted["main"] == 1, counted
        assert counted.get("image", 0) == (4 if view == "overview" else 0), counted


async def hidden_pages_are_quiet(page):
    tell = 'document.dispatchEvent(new Event("visibilitychange"))'
    await page.js(
        f'Object.defineProperty(document, "hidden", {{ value: true, configurable: true }}); {tell}'
    )
    # One request may be under way; a second and a half has room for another one.
    await page.js('fetch("livez").then((answer) => answer.text())')
    asked = len(page.requests)
    await asyncio.sleep(1.5)
    assert len(page.requests) <= asked, page.requests[asked:]
    await page.js(f"delete document.hidden; {tell}")
    before = await page.text("#about")
    await page.when(f"about.textContent !== {before!r}")


def expect_no_complaints(page, origin, outage=False):
    # The browser notes each answer that is an error: here, that to a code which nobody may send.
    complaints = [one for one in page.complaints if "code=1005" not in one]
    if outage:
        complaints = [one for one in complaints if "net::ERR_" not in one]
    assert not complaints, complaints
    foreign = [url for url in page.requests if not url.startswith((f"{origin}/", "data:"))]
    assert not foreign, foreign
    page.complaints.clear()


async def without_a_token(browser, setting, pictures):
    async with setting.proxy() as proxy:
        await proxy.says("event=admin_listening")
        page = await open_page(browser, setting.origin)
        await page.when(text_is("#state", "Ready"))
        long = "/" + "long-" * 45
        clients = [
            await setting.tunnel(setting.chat, f"/rooms/{number}?token=secret")
            for number in range(6)
        ]
        clients += [
            await setting.tunnel(setting.feed, "/news", **{"X-Forwarded-For": HOSTILE}),
            await setting.tunnel(setting.feed, "/r%C3%A9sum%C3%A9"),
            await setting.tunnel(setting.feed, long),
        ]
        talking = [asyncio.create_task(chatter(client)) for client in clients]
        await charts_move(page)
        print("ok    charts move while traffic flows")
        await tables_by_keyboard(page)
        print("ok    tunnels are sorted and filtered by keyboard")
        await close_by_keyboard(page, clients[5])
        print("ok    a tunnel is closed from the page, and its ending is told")
        await show(page, "overview")
        # In turn, so that one of them comes to the backend on which nobody listens.
        clients += [await setting.tunnel(setting.named, "/") for _ in range(2)]
        await backends_show_their_health(page)
        print("ok    backends show their health, with its reason")
        await it_suits_everybody(page, pictures)
        print("ok    sizes from 320 px, contrast in both colour schemes, names for screen readers")
        await hidden_pages_are_quiet(page)
        print("ok    a hidden page asks nothing")
        await show(page, "overview")
        expect_no_complaints(page, setting.origin)
        assert await page.js("violations") == []
    await page.when('state.textContent.startsWith("Connection lost since ")')
    await page.picture(pictures / "lost-desktop-light.png")
    await asyncio.gather(*talking)
    async with setting.proxy() as proxy:
        await page.when(text_is("#state", "Ready"))
        await page.when(text_is("#chart-tunnels dd", "0"))
        print("ok    the page goes on by itself after the proxy was killed and started again")
        clients = [await setting.tunnel(setting.chat, "/") for _ in range(3)]
        await page.when(text_is("#open", "3"))
        await page.click("#drain")
        await page.when("dialog.open")
        await page.click("#go")
        await page.when(text_is("#state", "Draining"))
        await page.when('left.textContent.includes("3 of 3 tunnels")')
        await clients[0].close()
        await page.when('left.textContent.includes("2 of 3 tunnels")')
        assert await page.js("[progress.value, progress.max, drain.hidden]") == [1, 3, True]
        await page.looks(360, 740, "dark", phone=True)
        await page.picture(pictures / "draining-phone-dark.png")
        print("ok    a drain is begun from the page, and its state is shown")
        expect_no_complaints(page, setting.origin, outage=True)
    await page.when('state.textContent.endsWith(", while it drained")')
    assert await page.js("violations") == []


async def with_a_token(browser, setting, pictures):
    file = setting.folder / "token"
    file.write_text(TOKEN)
    others = [f"127.1.{number // 250}.{number % 250 + 1}:9" for number in range(1000)]
    async with setting.proxy(f'token_file = "{file}"', others) as proxy:
        await proxy.says("event=admin_listening")
        page = await open_page(browser, setting.origin, TOKEN)
        await page.when(text_is("#state", "Ready"))
        [challenge] = page.challenges
        assert (challenge["scheme"], challenge["realm"]) == ("basic", "ws-proxy"), challenge
        # Those of `chat`, `feed`, `named` and `checked`.
        count = 2 + 1001 + 1 + setting.addresses + 2
        await page.when(
            'document.querySelector("#backends-table .note").textContent'
            f' === "200 of {count:,} are shown"'
        )
        assert len(await rows(page, "backends", 0)) == 200
        await page.tab_to("#backends-filter")
        await page.type("127.1.3.250")
        await page.when('document.querySelectorAll("#backends-table tbody tr").length === 1')
        print("ok    a thousand backends are filtered, and 200 of them shown")

        client = await setting.tunnel(setting.chat, "/")
        await show(page, "tunnels")
        await page.when('document.querySelectorAll("#tunnels-table tbody tr").length === 1')
        await page.click("#tunnels-table td button")
        await page.when("dialog.open")
        await page.picture(pictures / "dialog-desktop-light.png", whole=False)
        await page.click("#go")
        async with asyncio.timeout(PATIENCE):
            await client.wait_closed()
        assert client.close_code == 1001
        assert len(page.challenges) == 1, page.challenges
        # The first answer to a page that needs a token is a 401.
        refused = [one for one in page.complaints if "401" not in one]
        assert not refused, refused
        print("ok    the browser asks for the token once, and the page works with it")


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--ws-proxy", required=True)
    parser.add_argument("--chromium", required=True)
    parser.add_argument("--pictures", required=True, type=Path)
    arguments = parser.parse_args()
    arguments.pictures.mkdir(parents=True, exist_ok=True)
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        setting = Setting(arguments.ws_proxy, folder)
        for port in setting.backends:
            echo = Program(arguments.ws_proxy, "echo", "--bind", f"127.0.0.1:{port}")
            await stack.enter_async_context(echo)
            await echo.says(str(port))
        browser = await stack.enter_async_context(Chromium(arguments.chromium))
        await without_a_token(browser, setting, arguments.pictures)
        await with_a_token(browser, setting, arguments.pictures)
    print(f"pictures are in {arguments.pictures}")


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
