"""A real headless Chromium, and a page in it that keeps what went wrong."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--use-angle=swiftshader",  # WebGL without a graphics card
    "--enable-unsafe-swiftshader",
    "--disable-gpu-compositing",  # the page itself is drawn without WebGL: ten times as fast on two cores
)
# Of the software WebGL when a screenshot reads its image back, not of the page.
DRIVER_MESSAGE = "GL Driver Message"
DEADLINE = 40_000  # milliseconds for one thing to come about: a busy machine draws points without a graphics card
expect.set_options(timeout=DEADLINE)


def find_chromium() -> str | None:
    """The browser on this machine, or None; tests/install_tools.sh installs it."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def running_chromium(executable: str) -> Iterator[Browser]:
    """A browser for some tests. Not for a whole session: asyncio.run fails while its loop is there."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


class Trouble:
    """What a page complained of, and the addresses that it asked for."""

    def __init__(self, page: Page) -> None:
        self.messages: list[str] = []
        self.addresses: list[str] = []
        page.on("console", lambda message: self._hear(message.type, message.text))
        page.on("pageerror", lambda error: self.messages.append(str(error)))
        page.on("dialog", lambda dialog: self.messages.append(f"dialog {dialog.message}"))
        page.on("requestfailed", self._fail)
        page.on("request", lambda request: self.addresses.append(request.url))

    def forget(self) -> None:
        self.messages.clear()
        self.addresses.clear()

    def _fail(self, request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # by the test, which has gone to another page
            self.messages.append(f"failed {request.url}: {request.failure}")

    def _hear(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and DRIVER_MESSAGE not in text:
            self.messages.append(f"{kind}: {text}")


@contextmanager
def open_page(browser: Browser, address: str, **context: Any) -> Iterator[tuple[Page, Trouble]]:
    """A gallery, loaded, in a context of its own, and its troubles."""
    with browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **context}) as own:
        page = own.new_page()
        page.set_default_timeout(DEADLINE)
        trouble = Trouble(page)
        load(page, address)
        yield page, trouble


def load(page: Page, address: str) -> None:
    """Go to a gallery, and wait until it has read its rows."""
    page.goto(address)
    page.wait_for_selector("html[data-ready]")
