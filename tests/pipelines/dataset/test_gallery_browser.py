"""The gallery in a real headless Chromium, opened from a disk."""

from __future__ import annotations

import functools
import http.server
import io
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from jointdit.geometry.depth import depth_edges, metric_depth, unproject
from pipelines.dataset import gallery
from pipelines.dataset.gallery.images import NEAREST
from pipelines.ledger.entries import sha256
from pipelines.ledger.segments import VersionFile
from pipelines.stages.sinks.parquet import table_bytes
from pipelines.store.storage import Storage
from tests.browser import Trouble, find_chromium, load, open_page, running_chromium
from tests.published import FIRST, SECOND, publish_tables, quarantined, rejected, slope

NASTY = """<script>window.pwned = 1</script><img src=x onerror="window.pwned = 1"><b>bold</b> &amp; </article>"""
ROWS = 5000
OPENING_MILLISECONDS = 3000
SEEN = "[...document.querySelectorAll('.card')].map((card) => Selection.rows[card.dataset.number].id)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = find_chromium()
    if executable is None:
        pytest.skip("there is no Chromium: tests/install_tools.sh, or apt-get install chromium")
    with running_chromium(executable) as running:
        yield running


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """40 kept samples, the second with a prompt full of markup, 3 rejected and 2 quarantined."""
    storage = Storage(str(tmp_path_factory.mktemp("gallery") / "rooms"))
    kept = [slope(number) for number in range(40)]
    kept[1].sample.row.__dict__["prompt"] = NASTY
    rejects = [rejected(50, "depth_range: flat"), rejected(51, "depth_range: flat"), rejected(52, "blank: grey")]
    bad = [quarantined(60, f"bad row {NASTY}", f"Traceback {NASTY}"), quarantined(61, "another")]
    version = publish_tables(
        storage, [("a", "kept", kept), ("a", "rejected", rejects), ("a", "quarantined", bad)], points={"z_far": 3.0}
    )
    gallery.write(storage, version)
    return Path(storage.uri, "gallery", "index.html").as_uri()


@pytest.fixture(scope="module")
def tab(browser: Browser, address: str) -> Iterator[tuple[Page, Trouble]]:
    """One page for most tests: a context of its own takes a second."""
    with open_page(browser, address, has_touch=True) as opened:
        yield opened


@pytest.fixture
def opened(tab: tuple[Page, Trouble], address: str) -> Iterator[Page]:
    """The gallery; at the end of each test nothing was complained of and nothing outside was asked for."""
    page, trouble = tab
    trouble.forget()
    load(page, address)
    yield page
    assert trouble.messages == []
    folder = address.removesuffix("index.html")
    assert [url for url in trouble.addresses if not url.startswith((folder, "data:"))] == []


def count(page: Page, text: str) -> None:
    expect(page.locator("#count")).to_have_text(text)


def pixels(page: Page, selector: str) -> NDArray[np.int16]:
    return np.asarray(Image.open(io.BytesIO(page.locator(selector).screenshot())).convert("RGB")).astype(np.int16)


def changed(before: NDArray[np.int16], after: NDArray[np.int16]) -> float:
    """The share of pixels that look different."""
    return float((np.abs(before - after).max(axis=-1) > 24).mean())


def open_card(page: Page, number: int) -> None:
    """Open a card, with its points drawn."""
    page.evaluate("(number) => Grid.go(number)", number)
    page.keyboard.press("Enter")
    expect(page.locator("#points-count")).to_contain_text("points")


def test_images_depth_and_counts_are_shown(opened: Page) -> None:
    assert opened.evaluate("[...document.querySelectorAll('[role=tab]')].map((tab) => tab.textContent)") == [
        "kept40",
        "rejected3",
        "quarantined2",
    ]
    count(opened, "40 kept")
    expect(opened.locator(".card .rgb").first).to_be_visible()
    expect(opened.locator(".card .depth").first).to_have_attribute("width", "60")
    shown = pixels(opened, ".card .depth >> nth=0").sum(axis=-1)
    assert shown[-8:].mean() > shown[:8].mean() + 100, "near, at the bottom, is bright"
    assert opened.locator(".card .rgb").first.get_attribute("alt") == "Image: prompt number 0"


def test_markup_in_a_prompt_stays_text(opened: Page) -> None:
    expect(opened.locator(".card .prompt").nth(1)).to_have_text(NASTY)
    opened.locator(".card .open").nth(1).click()
    expect(opened.locator("#detail-title")).to_have_text(NASTY)
    opened.keyboard.press("Escape")
    opened.keyboard.press("3")
    opened.locator(".card .open").first.click()
    expect(opened.locator("#detail-reasons li")).to_have_text(f"bad row {NASTY}")
    opened.locator("#detail-trace summary").click()
    expect(opened.locator("#detail-trace pre")).to_have_text(f"Traceback {NASTY}")
    assert opened.locator("#grid b, #grid script, #detail b, #detail script, img[src=x]").count() == 0
    assert opened.evaluate("window.pwned") is None


def test_markup_that_were_parsed_could_not_run(browser: Browser, address: str) -> None:
    with open_page(browser, address) as (page, trouble):
        page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=\"x\" onerror=\"window.pwned = 1\">')")
        page.evaluate("document.querySelector('img[src=x]').dispatchEvent(new Event('error'))")
        assert page.evaluate("window.pwned") is None
        assert any("Content Security Policy" in message for message in trouble.messages)


def test_tabs_show_outcomes_with_their_reasons_and_kinds_filter(opened: Page) -> None:
    opened.locator("#tab-rejected").click()
    count(opened, "3 rejected")
    expect(opened.locator(".card .reason").first).to_have_text("depth_range: flat")
    opened.locator(".kinds .chip", has_text="blank").click()
    count(opened, "1 of 3 match")
    assert opened.evaluate(SEEN) == ["row-52/0"]
    opened.locator("#active .chip").click()
    count(opened, "3 rejected")
    opened.locator("#tab-quarantined").click()
    expect(opened.locator(".card .reason").nth(1)).to_have_text("another")


def test_every_score_filters_and_sorts(opened: Page) -> None:
    box = opened.locator(f".range[data-score='{FIRST}']")
    box.locator("input").first.evaluate("(input) => { input.value = 500; input.dispatchEvent(new Event('input')); }")
    # 0 to 13 over kept and rejected, number / 4 each: the upper half begins at 6.5.
    count(opened, "14 of 40 match")
    expect(opened.locator("#active .chip")).to_have_text(f"6.5 ≤ {FIRST}×")
    opened.locator("#sort").select_option(FIRST)
    opened.locator("#direction").click()
    assert opened.evaluate(SEEN)[:3] == ["row-39/0", "row-38/0", "row-37/0"]
    expect(opened.locator(".card .low").first).to_have_text(f"{FIRST}9.75")
    opened.locator("#sort").select_option(SECOND)
    assert opened.evaluate(SEEN)[:2] == ["row-28/0", "row-35/0"], "highest first, then as in the tables"
    opened.reload()
    opened.wait_for_selector("html[data-ready]")
    count(opened, "14 of 40 match")
    assert opened.evaluate(SEEN)[:2] == ["row-28/0", "row-35/0"], "the address keeps the view"


def test_search_finds_all_words_and_nothing_is_told(opened: Page) -> None:
    opened.keyboard.press("/")
    opened.keyboard.type("NUMBER 13")
    count(opened, "1 of 40 match")
    assert opened.evaluate(SEEN) == ["row-13/0"]
    opened.keyboard.type("x")
    expect(opened.locator("#empty")).to_contain_text("No sample matches.")
    opened.keyboard.press("Escape")
    count(opened, "40 kept")


def focus_is_on(page: Page, number: str) -> None:
    """Wait for it: a dialog tells of its close a little later, and a grid of thousands draws the card first."""
    expect(page.locator(f".card[data-number='{number}'] :focus")).to_have_count(1)


def test_keys_go_through_samples_open_and_close_them(opened: Page) -> None:
    opened.keyboard.press("?")
    expect(opened.locator("#keys")).to_be_visible()
    opened.keyboard.press("Escape")
    opened.keyboard.press("ArrowDown")
    opened.keyboard.press("ArrowRight")
    opened.keyboard.press("ArrowRight")
    focus_is_on(opened, "2")
    opened.keyboard.press("Enter")
    expect(opened.locator("#detail-title")).to_have_text("prompt number 2")
    opened.keyboard.press("ArrowRight")
    opened.keyboard.press("ArrowRight")
    expect(opened.locator("#detail-title")).to_have_text("prompt number 4")
    opened.keyboard.press("ArrowLeft")
    expect(opened.locator("#detail-place")).to_have_text("4 of 40")
    opened.keyboard.press("Escape")
    expect(opened.locator("#detail")).to_be_hidden()
    focus_is_on(opened, "3")
    opened.keyboard.press("End")
    focus_is_on(opened, "39")


def test_points_turn_with_mouse_touch_and_keys(opened: Page) -> None:
    page = opened
    open_card(page, 30)
    start = pixels(page, "#view")
    drawn = (np.abs(start - start[2, 2]).max(axis=-1) > 24).mean()
    assert drawn > 0.2, "points cover the image"
    box = page.locator("#view").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 90, y + 30, steps=3)
    page.mouse.up()
    turned = pixels(page, "#view")
    assert changed(start, turned) > 0.05
    page.mouse.wheel(0, 400)
    zoomed = pixels(page, "#view")
    assert changed(turned, zoomed) > 0.05
    page.locator("#reset").click()
    assert changed(start, pixels(page, "#view")) < 0.001
    touch(page, [(x, y), (x + 40, y), (x + 90, y + 20)])
    assert changed(start, pixels(page, "#view")) > 0.05
    page.locator("#view").focus()
    page.keyboard.press("0")
    assert changed(start, pixels(page, "#view")) < 0.001
    page.keyboard.press("ArrowLeft")
    assert changed(start, pixels(page, "#view")) > 0.02
    expect(page.locator("#detail-title")).to_have_text("prompt number 30")
    before = pixels(page, "#view")
    page.locator("#point-depth").check()
    assert changed(before, pixels(page, "#view")) > 0.1


def touch(page: Page, way: list[tuple[float, float]]) -> None:
    """One finger along a way."""
    session = page.context.new_cdp_session(page)
    for number, (x, y) in enumerate(way):
        kind = "touchMove" if number else "touchStart"
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def test_points_are_those_of_the_engine(opened: Page) -> None:
    """Unpacked depth and lifted points against this package's own unprojection, to 12 bits of disparity."""
    made = slope(30)
    lifted: dict[str, Any] = opened.evaluate(
        """async () => {
            const shown = await Data.shown(30);
            const depth = await Depth.unpack(shown.depth);
            const { position } = Points.lift(depth, shown.camera, 0);
            const kept = Points.lift(depth, shown.camera, 0.05).value.length;
            return { values: Array.from(depth.values), position, kept, camera: shown.camera };
        }"""
    )
    assert made.disparity is not None
    values = np.array(lifted["values"]).reshape(made.disparity.shape)
    assert np.abs((values - 1) / (NEAREST - 1) - made.disparity).max() <= 0.5 / (NEAREST - 1) + 0.5 / 65535 + 1e-7
    fx, fy, cx, cy, _, _, near, far = lifted["camera"]
    depth = metric_depth(made.disparity, near, far)
    exact = unproject(depth, fx, fy, cx, cy).reshape(-1, 3)
    points = np.array(lifted["position"]).reshape(-1, 3) * (1, -1, -1)
    assert np.abs(points - exact).max() < 2e-3
    without_edges = (~depth_edges(depth, 0.05)).sum()
    assert lifted["kept"] == pytest.approx(without_edges, rel=0.01)
    assert 0 < without_edges < depth.size


def test_the_slider_uncovers_depth(opened: Page) -> None:
    open_card(opened, 5)
    expect(opened.locator("#compare-rgb")).to_have_js_property("complete", True)
    half = pixels(opened, "#compare .frame")
    opened.locator("#wipe").focus()
    opened.keyboard.press("End")
    image = pixels(opened, "#compare .frame")
    opened.keyboard.press("Home")
    depth = pixels(opened, "#compare .frame")
    width = half.shape[1]
    assert changed(half[:, : width // 2 - 30], image[:, : width // 2 - 30]) < 0.01
    assert changed(half[:, width // 2 + 30 :], depth[:, width // 2 + 30 :]) < 0.01
    assert changed(image, depth) > 0.5
    expect(opened.locator("#detail-title")).to_have_text("prompt number 5")


def test_it_is_as_dark_as_the_system_and_can_be_switched(opened: Page, address: str) -> None:
    brightness = {}
    schemes: tuple[Literal["dark", "light"], ...] = ("dark", "light")
    for scheme in schemes:
        opened.emulate_media(color_scheme=scheme)
        load(opened, address)
        brightness[scheme] = pixels(opened, "footer").mean()
    assert brightness["dark"] < 80 < 180 < brightness["light"]
    opened.locator("#theme").click()
    assert pixels(opened, "footer").mean() == brightness["dark"]
    opened.locator("#theme").click()


def test_a_phone_shows_it_without_scrolling_sideways(browser: Browser, address: str) -> None:
    phone = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
    with open_page(browser, address, **phone) as (page, trouble):
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.locator("#toggle-panel").tap()
        expect(page.locator("#panel")).to_be_visible()
        page.locator(".done").tap()
        expect(page.locator("#panel")).to_be_hidden()
        page.locator(".card .open").first.tap()
        expect(page.locator("#points-count")).to_contain_text("points")
        assert page.evaluate("document.getElementById('detail').scrollWidth <= innerWidth")
        assert trouble.messages == []


def test_it_opens_from_a_server_too(browser: Browser, address: str) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    folder = Path(address.removeprefix("file://")).parents[1]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            with open_page(browser, f"http://127.0.0.1:{server.server_port}/gallery/index.html") as (page, trouble):
                open_card(page, 0)
                assert trouble.messages == []
        finally:
            server.shutdown()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A gallery of 5,000 rows in five tables."""
    storage = Storage(str(tmp_path_factory.mktemp("large") / "rooms"))
    version = publish_tables(storage, [("seed", "kept", [slope(number, 16, 24) for number in range(50)])])
    seed = pq.read_table(io.BytesIO(storage.read_bytes("data/seed-a.parquet")))
    files = []
    for shard in range(5):
        numbers = range(shard * ROWS // 5, (shard + 1) * ROWS // 5)
        table = pa.concat_tables([seed] * (len(numbers) // len(seed)))
        for name, text in (("id", "row-{}/0"), ("prompt", "prompt number {} of a large gallery, in some more words")):
            column = pa.array([text.format(number) for number in numbers])
            table = table.set_column(table.column_names.index(name), table.field(name), column)
        data = table_bytes(table)
        storage.write_bytes(f"data/{shard}-a.parquet", data)
        files.append(VersionFile(f"data/{shard}-a.parquet", "kept", len(table), len(data), sha256(data), str(shard)))
    counts = {"kept": ROWS, "rejected": 0, "quarantined": 0}
    version = replace(version.with_files(files), counts=counts)
    gallery.write(storage, version, limit=ROWS)
    return Path(storage.uri, "gallery", "index.html").as_uri()


def test_five_thousand_rows_open_at_once_and_scroll(browser: Browser, large: str) -> None:
    with open_page(browser, large) as (page, trouble):
        opening = page.evaluate("performance.getEntriesByName('ready')[0].startTime")
        print(f"5,000 rows open in {opening:.0f} ms")
        count(page, "5,000 kept")
        assert page.locator(".card").count() < 60, "only what is near the window exists"
        page.evaluate("scrollTo(0, document.body.scrollHeight / 2)")
        expect(page.locator(".card").first).not_to_have_attribute("aria-posinset", "1")
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        last = page.locator(f".card[aria-posinset='{ROWS}']")
        expect(last).to_be_visible()
        expect(last.locator(".id")).to_have_text(f"row-{ROWS - 1}/0")
        expect(last.locator(".depth")).to_have_attribute("width", "24")
        assert page.locator(".card").count() < 60
        loaded = [url for url in trouble.addresses if "/rows-" in url]
        assert len(loaded) < 30, "no more than what was seen is loaded"
        page.keyboard.press("/")
        page.keyboard.type("4321")
        count(page, "1 of 5,000 match")
        assert trouble.messages == []
        assert opening < OPENING_MILLISECONDS
