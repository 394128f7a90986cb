"""The system's Chromium, headless, and what a page did while it was open."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_QUIET = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_OWN = ("file:", "data:", "blob:", "about:")


def executable() -> str | None:
    return next((path for path in map(shutil.which, _NAMES) if path), None)


def lacking() -> str:
    """Why no browser can be started here, or ""."""
    if executable() is None:
        return "no Chromium here: install your system's package (Debian: chromium fonts-noto-cjk)"
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not installed"
    return ""


@contextmanager
def chromium() -> Iterator["Browser"]:
    """One browser; playwright keeps an event loop running for as long as it lives."""
    from playwright.sync_api import sync_playwright

    arguments = [*_QUIET, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable(), args=arguments)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Opened:
    """A page, and everything it complained of or asked the network for."""

    page: "Page"
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def ask(self, script: str, argument: Any = None) -> Any:
        """What a piece of JavaScript says."""
        return self.page.evaluate(script, argument)

    def wait_until(self, script: str, seconds: float = 10) -> None:
        """Playwright's own `wait_for_function` makes code of text inside the page, which our pages forbid."""
        deadline = time.monotonic() + seconds
        while not self.ask(script):
            assert time.monotonic() < deadline, script
            self.page.wait_for_timeout(50)


def open_page(
    browser: "Browser", file: Path, width: int = 1440, scheme: str = "light", **more: Any
) -> Opened:
    """The file in a window of this width, its charts drawn."""
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme=scheme,  # type: ignore[arg-type]
        accept_downloads=True,
        **more,
    )
    opened = Opened(context.new_page())
    page = opened.page
    page.on("console", lambda said: opened.complaints.append(f"{said.type}: {said.text}"))
    page.on("pageerror", lambda error: opened.complaints.append(f"error: {error}"))
    page.on("request", lambda asked: _note(opened.requests, asked.url))
    page.goto(file.as_uri())
    if more.get("java_script_enabled", True):
        page.wait_for_selector("html[data-drawn=true]", state="attached", timeout=30_000)
    return opened


def _note(requests: list[str], address: str) -> None:
    if not address.startswith(_OWN):
        requests.append(address)
