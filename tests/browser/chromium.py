"""A headless Chromium, steered by the DevTools protocol."""

import asyncio
import base64
import contextlib
import json
import os
import signal
import tempfile
from pathlib import Path

import websockets

PATIENCE = 30
# Error of the DevTools protocol.
NAVIGATED = "Inspected target navigated or closed"
# Completes when the expression is true, which is looked at whenever the page changes or has loaded.
WHEN = """new Promise((done) => {
  const look = () => {
    let is;
    try { is = %s; } catch { }
    if (is) { stop.disconnect(); done(is); }
  };
  const stop = new MutationObserver(look);
  stop.observe(document, { attributes: true, characterData: true, childList: true, subtree: true });
  addEventListener("load", look);
  look();
})"""
# Text that is too faint on its ground for WCAG 2.1, 1.4.3 (AA).
FAINT = """(() => {
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = colour.map((c) => c / 255)
      .map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const text = [...node.childNodes].filter((one) => one.nodeType === 3).map((one) => one.data);
    if (!text.join("").trim() || !node.checkVisibility()) continue;
    const [a, b] = [light(parse(getComputedStyle(node).color).slice(0, 3)), light(ground(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(`${text.join("").trim()}: ${ratio.toFixed(2)}`);
  }
  return found;
})()"""


class Navigated(AssertionError):
    """The page has been left for another one, or loaded again."""


class Chromium:
    """A browser of its own, with an empty profile."""

    def __init__(self, program, *arguments):
        self.program, self.arguments = program, arguments

    async def __aenter__(self):
        self.folder = tempfile.TemporaryDirectory()
        arguments = [
            "--headless=new",
            "--remote-debugging-port=0",
            f"--user-data-dir={self.folder.name}",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--force-color-profile=srgb",
            "--hide-scrollbars",
        ]
        if os.geteuid() == 0:
            # Its sandbox needs a user without the rights of root.
            arguments.append("--no-sandbox")
        # A group of its own, so that its helpers end with it.
        self.process = await asyncio.create_subprocess_exec(
            self.program,
            *arguments,
            *self.arguments,
            "about:blank",
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        prefix = "DevTools listening on "
        async with asyncio.timeout(PATIENCE):
            async for line in self.process.stderr:
                if line.decode().startswith(prefix):
                    self.address = line.decode().removeprefix(prefix).strip()
                    break
        self.reading = asyncio.create_task(self.process.stderr.read())
        self.socket = await websockets.connect(self.address, max_size=None, proxy=None)
        self.answers, self.pages, self.last = {}, {}, 0
        self.receiving = asyncio.create_task(self.receive())
        return self

    async def __aexit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        await self.process.wait()
        self.receiving.cancel()
        self.reading.cancel()
        with contextlib.suppress(OSError):
            self.folder.cleanup()

    async def receive(self):
        async for text in self.socket:
            message = json.loads(text)
            if "id" in message:
                self.answers.pop(message["id"]).set_result(message)
            elif page := self.pages.get(message.get("sessionId")):
                page.on(message["method"], message["params"])

    async def call(self, method, session=None, **params):
        self.last += 1
        answer = self.answers[self.last] = asyncio.get_running_loop().create_future()
        message = {"id": self.last, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        await self.socket.send(json.dumps(message))
        async with asyncio.timeout(PATIENCE):
            message = await answer
        if "error" in message:
            error = message["error"]
            kind = Navigated if error["message"] == NAVIGATED else AssertionError
            raise kind(f"{method}: {error}")
        return message["result"]

    async def page(self):
        target = await self.call("Target.createTarget", url="about:blank")
        session = await self.call(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        page = Page(self, session["sessionId"])
        for domain in ["Page", "Runtime", "Log", "Network", "Accessibility"]:
            await page.call(f"{domain}.enable")
        return page


class Page:
    """A tab, which notes what it asks for and what it complains of."""

    def __init__(self, browser, session):
        self.browser, self.session = browser, session
        browser.pages[session] = self
        self.requests, self.complaints, self.challenges = [], [], []
        self.token = None
        self.tasks = set()

    async def call(self, method, **params):
        return await self.browser.call(method, self.session, **params)

    def on(self, method, params):
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Network.webSocketCreated":
            self.requests.append(params["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.complaints.append(json.dumps(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{params['entry']['text']} ({params['entry'].get('url')})")
        elif method == "Fetch.requestPaused":
            self.start(self.call("Fetch.continueRequest", requestId=params["requestId"]))
        elif method == "Fetch.authRequired":
            self.challenges.append(params["authChallenge"])
            answer = {"response": "ProvideCredentials", "username": "me", "password": self.token}
            self.start(
                self.call(
                    "Fetch.continueWithAuth",
                    requestId=params["requestId"],
                    authChallengeResponse=answer,
                )
            )

    def start(self, call):
        task = asyncio.ensure_future(call)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def types_the_token(self, token):
        """Has this typed wherever the browser asks for a password."""
        self.token = token
        await self.call("Fetch.enable", handleAuthRequests=True)

    async def go(self, address):
        result = await self.call("Page.navigate", url=address)
        assert "errorText" not in result, result
        await self.when("document.readyState === 'complete'")

    async def js(self, expression):
        result = await self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in result, (expression, result["exceptionDetails"])
        return result["result"].get("value")

    async def when(self, expression):
        """Waits until an expression is true of the page, also of one that takes its place; returns
        its value.
        """
        try:
            async with asyncio.timeout(PATIENCE):
                while True:
                    with contextlib.suppress(Navigated):
                        return await self.js(WHEN % expression)
        except TimeoutError:
            text = await self.js("document.body.innerText")
            raise AssertionError(f"never true: {expression}\n{text}") from None

    async def text(self, selector):
        return await self.js(f"document.querySelector({json.dumps(selector)}).textContent")

    async def click(self, selector):
        """Clicks into the middle of an element, as a mouse does."""
        where = await self.js(
            f"""(() => {{ const it = document.querySelector({json.dumps(selector)});
            it.scrollIntoView({{ block: "center" }});
            const box = it.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2]; }})()"""
        )
        for kind in ["mousePressed", "mouseReleased"]:
            await self.call(
                "Input.dispatchMouseEvent",
                type=kind,
                x=where[0],
                y=where[1],
                button="left",
                clickCount=1,
            )

    async def press(self, key, code=0, text="", modifiers=0):
        for kind in ["keyDown", "keyUp"]:
            await self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                windowsVirtualKeyCode=code,
                modifiers=modifiers,
                **({"text": text} if kind == "keyDown" and text else {}),
            )

    async def tab_to(self, selector):
        """Goes to an element with the Tab key alone."""
        for _ in range(200):
            if await self.js(f"document.activeElement.matches({json.dumps(selector)})"):
                return
            await self.press("Tab", 9)
        raise AssertionError(f"no Tab leads to {selector}")

    async def type(self, text):
        await self.call("Input.insertText", text=text)

    async def looks(self, width, height, scheme, phone=False):
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        await self.call("Emulation.setEmulatedMedia", features=[feature])

    async def faint(self):
        """Returns the texts that are too faint, with their contrast."""
        return await self.js(FAINT)

    async def picture(self, path, whole=True):
        shot = await self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(shot["data"]))
