"""A headless Chromium that a test drives over its debugging protocol, on loopback only.

Debian's `chromium-headless-shell` or `chromium`; without one, tests that need it are skipped.
"""

import asyncio
import base64
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp

PROGRAM = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium"))), None)


class Page:
    """One page. `complaints` are its console's errors, its exceptions and what it couldn't load."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, session: str) -> None:
        self._socket = socket
        self._session = session
        self._number = 0
        self.complaints: list[str] = []
        self.asked_for: list[str] = []

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command and return its answer; what happens meanwhile is noted."""
        self._number += 1
        await self._socket.send_json(
            {"id": self._number, "method": method, "params": params, "sessionId": self._session}
        )
        while True:
            message = json.loads((await self._socket.receive(timeout=30)).data)
            if message.get("id") == self._number:
                assert "error" not in message, message["error"]
                return message["result"]
            self._note(message.get("method", ""), message.get("params", {}))

    async def evaluate(self, expression: str) -> Any:
        """Return the value of an expression in the page."""
        found = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    async def open(self, path: Path, *, width: int = 1280, height: int = 900) -> None:
        """Show a file and return once it is drawn."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        await self.call("Page.navigate", url=path.as_uri())
        for _ in range(200):
            if await self.evaluate("document.readyState") == "complete":
                break
            await asyncio.sleep(0.05)
        await self.evaluate("new Promise((done) => requestAnimationFrame(() => done(0))) && 0")

    async def press(self, key: str) -> None:
        """Press a key and let it go."""
        text = {"text": key} if len(key) == 1 else {}
        await self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        await self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    async def point(self, x: float, y: float, kind: str = "mouseMoved", **more: Any) -> None:
        """Move the pointer, or press and release it."""
        await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    async def capture(self) -> bytes:
        """Return what is seen as a PNG."""
        found = await self.call("Page.captureScreenshot", format="png")
        return base64.b64decode(found["data"])

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.complaints.append(params["exceptionDetails"].get("text", "exception"))
        elif method == "Runtime.consoleAPICalled" and params["type"] in {"error", "warning"}:
            self.complaints.append(str(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in {"error", "warning"}:
            self.complaints.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.asked_for.append(params["request"]["url"])


@asynccontextmanager
async def open_browser(home: Path) -> AsyncIterator[Page]:
    """Start Chromium with a profile of its own and give its one page; ends with the block."""
    assert PROGRAM is not None
    process = await asyncio.create_subprocess_exec(
        PROGRAM, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
        "--remote-debugging-address=127.0.0.1", "--no-first-run", f"--user-data-dir={home}",
        "about:blank", stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        address = await _find_address(home)
        async with aiohttp.ClientSession() as client:
            socket = await client.ws_connect(address, max_msg_size=0)
            yield Page(socket, await _attach(socket))
            _end(process)
    finally:
        _end(process)
        await process.wait()


def _end(process: asyncio.subprocess.Process) -> None:
    """End the browser with all it started: what was started may be a script around it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


async def _attach(socket: aiohttp.ClientWebSocketResponse) -> str:
    """Return the session of the browser's one page."""
    await socket.send_json({"id": 0, "method": "Target.getTargets"})
    found = json.loads((await socket.receive(timeout=30)).data)["result"]["targetInfos"]
    target = next(one["targetId"] for one in found if one["type"] == "page")
    params = {"targetId": target, "flatten": True}
    await socket.send_json({"id": 0, "method": "Target.attachToTarget", "params": params})
    message: dict[str, Any] = {}
    while "id" not in message:
        message = json.loads((await socket.receive(timeout=30)).data)
    return str(message["result"]["sessionId"])


async def _find_address(home: Path) -> str:
    """Return where the browser listens, from the file that it writes once it does."""
    file = home / "DevToolsActivePort"
    for _ in range(1200):
        written = file.read_text().split() if file.exists() else []
        if len(written) == 2:
            return f"ws://127.0.0.1:{written[0]}{written[1]}"
        await asyncio.sleep(0.05)
    raise AssertionError("Chromium must listen within a minute; it wrote no port.")
