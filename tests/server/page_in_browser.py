"""What a person does with the page at /tuco, and sees: the words in which its tests are written."""

import json

from fastapi import FastAPI
from server.chromium import CTRL, Chromium

TOKENS = "[...document.querySelectorAll('article')].map((a) => [...a.querySelectorAll('[role=option]')])"
"""Every column's tokens, in the page's language."""


class Page:
    """The page in the browser, and the server behind it."""

    def __init__(self, browser: Chromium, app: FastAPI, url: str) -> None:
        self.browser, self.app, self.url = browser, app, url
        self.run, self.press = browser.evaluate, browser.press
        browser.events.clear()
        browser.look(1280, 900)
        browser.open(f"{url}/tuco")

    def ready(self) -> "Page":
        self.browser.wait("document.getElementById('model').value === 'base-chat'")
        return self

    def ask(self, prompt: str, chat: bool = False) -> None:
        """Fills in the prompt and presses Ctrl+Enter in it."""
        if chat:
            self.run("document.querySelector('[value=chat]').click()")
        self.run("document.getElementById('prompt').select()")
        self.run("document.getElementById('prompt').focus()")
        self.browser.write(prompt)
        self.press("Enter", CTRL)

    def status(self, start: str) -> str:
        """Waits until the status line begins with ``start``, and returns it."""
        line = "document.getElementById('status').textContent"
        return self.browser.wait(f"{line}.startsWith({json.dumps(start)}) && {line}")

    def texts(self, selector: str = ".tokens") -> list[str]:
        """The text of each element that ``selector`` finds; without one, the completions."""
        found = f"[...document.querySelectorAll({json.dumps(selector)})]"
        return self.run(f"{found}.map((e) => e.textContent)")

    def complaints(self) -> list[str]:
        """What the browser held against the page: console, exceptions, policy, and other servers asked.

        Answers like 401 are the server's, the browser logs them with source "network".
        """
        self.run("1")  # fetches the events
        found = []
        for event in self.browser.events:
            kind, params = event["method"], event["params"]
            policy = kind == "Audits.issueAdded" and "ContentSecurity" in params["issue"]["code"]
            if policy or kind in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
                found.append(f"{kind}: {json.dumps(params)[:400]}")
            if kind == "Log.entryAdded" and params["entry"]["source"] != "network":
                found.append(params["entry"]["text"])
            if kind == "Network.requestWillBeSent":
                asked = params["request"]["url"]
                if not asked.startswith((f"{self.url}/", "data:")):
                    found.append(f"asked for {asked}")
        return found
