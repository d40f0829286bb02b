"""A headless Chromium, and pages that record their errors and requests."""

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
    "--disable-gpu-compositing",  # draws the page itself without WebGL, ten times as fast on two cores
)
# The software WebGL logs this when a screenshot reads its image; it is no error of the page.
DRIVER_MESSAGE = "GL Driver Message"
DEADLINE = 40_000  # milliseconds for each condition, because software WebGL is slow on a busy machine
expect.set_options(timeout=DEADLINE)


def find_chromium() -> str | None:
    """Return the path of the browser, or None; tests/install_tools.sh installs it."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def running_chromium(executable: str) -> Iterator[Browser]:
    """Run a browser within the block. Not for a whole session: asyncio.run fails while the browser's loop runs."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


class Trouble:
    """The errors and warnings of a page, and the addresses that it requested."""

    def __init__(self, page: Page) -> None:
        self.messages: list[str] = []
        self.addresses: list[str] = []
        page.on("console", lambda message: self._log(message.type, message.text))
        page.on("pageerror", lambda error: self.messages.append(str(error)))
        page.on("dialog", lambda dialog: self.messages.append(f"dialog {dialog.message}"))
        page.on("requestfailed", self._fail)
        page.on("request", lambda request: self.addresses.append(request.url))

    def forget(self) -> None:
        self.messages.clear()
        self.addresses.clear()

    def _fail(self, request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # aborted when the test opens another page
            self.messages.append(f"failed {request.url}: {request.failure}")

    def _log(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and DRIVER_MESSAGE not in text:
            self.messages.append(f"{kind}: {text}")


@contextmanager
def open_page(browser: Browser, address: str, **context: Any) -> Iterator[tuple[Page, Trouble]]:
    """Open a gallery in a new context; yield the page and its troubles."""
    with browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **context}) as page_context:
        page = page_context.new_page()
        page.set_default_timeout(DEADLINE)
        trouble = Trouble(page)
        load(page, address)
        yield page, trouble


def load(page: Page, address: str) -> None:
    """Open a gallery and wait until its rows are loaded."""
    page.goto(address)
    page.wait_for_selector("html[data-ready]")
