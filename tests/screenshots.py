"""Screenshots for the README: `python -m tests.screenshots demo-output/depth-to-image docs`."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect

from tests.browser import find_chromium, open_page, running_chromium

DESKTOP = {"viewport": {"width": 1440, "height": 900}, "color_scheme": "dark"}
NUMBER = 3  # the sample to open


def main(dataset: str, output: str) -> None:
    """Save two images, together about 200 kB, of the gallery of a dataset in a local folder."""
    executable = find_chromium()
    if executable is None:
        sys.exit("Chromium is not installed: run tests/install_tools.sh or apt-get install chromium.")
    address = (Path(dataset).resolve() / "gallery" / "index.html").as_uri()
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    with running_chromium(executable) as browser, open_page(browser, address, **DESKTOP) as (page, _):
        expect(page.locator(".card .depth").last).not_to_have_attribute("width", "300")
        save(page, folder / "gallery.jpg", 1200)
        page.evaluate("(number) => Detail.open(number)", NUMBER)
        expect(page.locator("#points-count")).to_contain_text("points")
        save(page, folder / "gallery-detail.jpg", 1200)


def save(page: Page, file: Path, width: int) -> None:
    page.wait_for_load_state("networkidle")
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS).save(
        file, quality=88, optimize=True
    )


if __name__ == "__main__":
    main(*sys.argv[1:3])
