"""A headless Chromium over its DevTools protocol: no driver to install, `websockets` comes with vLLM."""

import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

BINARY = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    *("--headless=new", "--remote-debugging-port=0", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
    *("--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update"),
    "--no-first-run",
]
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "Space": 32, "End": 35, "Home": 36} | {
    f"Arrow{side}": code for side, code in zip(("Left", "Up", "Right", "Down"), range(37, 41), strict=True)
}
CTRL = 2


class Chromium:
    """One browser, one page. ``events`` has what the browser told so far: [{"method", "params"}, ...]."""

    def __init__(self, profile: Path) -> None:
        from websockets.sync.client import connect

        command = [str(BINARY), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port_file = profile / "DevToolsActivePort"  # two lines: port, path
        deadline = time.monotonic() + 60
        while not (port_file.exists() and port_file.read_text().count("\n")):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                raise RuntimeError(f"{BINARY} did not start")
            time.sleep(0.1)
        port, path = port_file.read_text().splitlines()
        self.opened = contextlib.ExitStack()
        self.socket = self.opened.enter_context(connect(f"ws://127.0.0.1:{port}{path}", max_size=None))
        self.ids, self.session = itertools.count(1), None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Audits"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        message = {"id": next(self.ids), "method": method, "params": params}
        self.socket.send(json.dumps(message | ({"sessionId": self.session} if self.session else {})))
        while True:
            reply = json.loads(self.socket.recv(timeout=30))
            if reply.get("id") == message["id"]:
                if "error" in reply:
                    raise RuntimeError(f"{method}: {reply['error']['message']}")
                return reply["result"]
            self.events.append(reply)

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page; waits for promises."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in done:
            raise RuntimeError(done["exceptionDetails"]["exception"].get("description", script))
        return done["result"].get("value")

    def wait(self, condition: str, seconds: float = 15) -> Any:
        """The expression's value as soon as it is true."""
        deadline = time.monotonic() + seconds
        while not (value := self.evaluate(condition)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{condition}; the page: {self.evaluate('document.body.innerText')[:800]}")
            time.sleep(0.05)
        return value

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait(f"location.href === {json.dumps(url)} && document.readyState === 'complete'")

    def press(self, key: str, modifiers: int = 0, times: int = 1) -> None:
        for _ in range(times):
            text = {"Enter": "\r", "Space": " "}.get(key) if not modifiers else None
            event = {"key": " " if key == "Space" else key, "code": key, "modifiers": modifiers}
            event["windowsVirtualKeyCode"] = KEYS[key]
            self.call("Input.dispatchKeyEvent", type="keyDown", **event, **({"text": text} if text else {}))
            self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def write(self, text: str) -> None:
        """Types where the focus is, in place of what is selected."""
        self.call("Input.insertText", text=text)

    def screenshot(self, file: Path, width: int, height: int, scheme: str = "light") -> None:
        self.look(width, height, scheme)
        full = self.evaluate("document.documentElement.scrollHeight")
        self.look(width, max(height, full), scheme)
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def look(self, width: int, height: int, scheme: str = "light") -> None:
        """The window's size and the color scheme that the system asks for."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.evaluate("new Promise((done) => setTimeout(done, 150))")  # a resize observer's turn, and a frame

    def close(self) -> None:
        try:
            self.session = None
            self.call("Browser.close")
            self.process.wait(20)
        except Exception:
            self.process.kill()
            self.process.wait()
        self.opened.close()
