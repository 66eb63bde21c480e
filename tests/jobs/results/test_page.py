"""The page of a report as a person uses it: in a browser, by keyboard and on a phone."""

import re
from dataclasses import replace

import pytest
from playwright.sync_api import Locator, Page, expect

from jobs.results.page import render
from jobs.results.report import ReportReader
from jobs.runs.resolve import resolve
from pipeline.run.names import edit_title
from pipeline.storage.store import Store
from tests.support.browser import chromium
from tests.support.reported import BROKEN, GONE, HOSTILE, measured_rows, measured_run
from tests.support.runs import make_faces, run_here, spec, stand_in_stages

WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
NAMELESS = """() => [...document.querySelectorAll("button, input, select, dialog, [role=region]")]
  .filter((part) => !(part.labels?.length || part.ariaLabel || part.textContent.trim()
    || document.getElementById(part.getAttribute("aria-labelledby"))?.textContent.trim()))
  .filter((part) => part.checkVisibility()).map((part) => part.outerHTML)"""
SCROLLS_SIDEWAYS = """() => [...document.querySelectorAll("*")]
  .filter((part) => part.scrollWidth > part.clientWidth + 1 && part.checkVisibility())
  .filter((part) => part === document.documentElement || /auto|scroll/.test(getComputedStyle(part).overflowX))
  .map((part) => part.id || part.tagName)"""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return measured_run(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def file(store, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_bytes(render(ReportReader(store).read(), None))
    return path


@pytest.fixture(scope="module")
def rows(store):
    return measured_rows(store)


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def open_page(browser):
    """Opens a file in a window of its own. Nothing may be fetched, and nothing may go wrong unseen."""
    contexts, wrong = [], []

    def open_it(path, viewport=WIDE, hash_="", **options) -> Page:
        contexts.append(browser.new_context(viewport=viewport, **options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.on("request", lambda request: re.match("file:|data:", request.url) or wrong.append(request.url))
        page.goto(path.as_uri() + hash_)
        page.wait_for_selector("html[data-ready]")
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert not wrong


def field(page: Page, name: str) -> Locator:
    return page.locator(f"#filters [name={name}]")


def counted(page: Page) -> int:
    return int(page.locator("#count").inner_text().split()[0])


def shown(page: Page, column: str) -> list[str]:
    place = page.eval_on_selector_all("#grid th", "(heads) => heads.map((head) => head.dataset.column)").index(column)
    return page.locator(f"#grid tbody tr:not(.space) td:nth-child({place + 1})").all_inner_texts()


def test_filters_leave_the_rows_that_the_manifest_has(open_page, file, rows):
    page = open_page(file)
    assert counted(page) == len(rows)
    field(page, "edit").select_option("smile -0.5")
    of_edit = [row for row in rows if edit_title(row["edit"], row["strength"]) == "smile -0.5"]
    assert counted(page) == len(of_edit)
    field(page, "status").select_option("decode_error")
    assert counted(page) == 1 and shown(page, "key") == [BROKEN]
    page.get_by_role("button", name="Show all").click()
    field(page, "metric").select_option("identity")
    field(page, "from").fill("0.25")
    field(page, "to").fill("0.75")
    assert counted(page) == sum(row["identity"] is not None and 0.25 <= row["identity"] <= 0.75 for row in rows)
    page.get_by_role("button", name="Show all").click()
    field(page, "key").fill("000")
    assert counted(page) == sum("000" in row["key"] for row in rows)


def test_histograms_and_the_worst_follow_the_filters(open_page, file, rows):
    page = open_page(file)
    field(page, "edit").select_option("glasses 1")
    field(page, "metric").select_option("edit_lpips")
    values = [row["edit_lpips"] for row in rows if row["edit"] == "glasses" and row["edit_lpips"] is not None]
    expect(page.locator("#histograms figcaption", has_text="edit_lpips")).to_contain_text(f"{len(values)} rows")
    expect(page.locator("#worst-title")).to_have_text("Worst by edit_lpips")
    worst = float(page.locator("#worst button").first.inner_text().split()[-1])
    assert worst == pytest.approx(max(values), rel=1e-3)
    best = float(page.locator("#best button").first.inner_text().split()[-1])
    assert best == pytest.approx(min(values), rel=1e-3)


def test_a_column_sorts_rising_then_falling_then_not(open_page, file):
    page = open_page(file)
    head = page.locator('#grid th[data-column="identity"]')
    planned = shown(page, "key")
    for order, falling in (("ascending", False), ("descending", True)):
        head.get_by_role("button").click()
        expect(head).to_have_attribute("aria-sort", order)
        values = [float(text) for text in shown(page, "identity") if text]
        assert len(values) > 5 and values == sorted(values, reverse=falling)
    head.get_by_role("button").click()
    assert shown(page, "key") == planned


def test_the_slider_moves_by_arrow_keys(open_page, file):
    page = open_page(file)
    page.locator("#sheet button").first.focus()
    page.keyboard.press("Enter")
    slider = page.get_by_role("slider")
    expect(slider).to_be_focused()
    before = int(slider.input_value())
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert int(slider.input_value()) == before + 5
    assert page.eval_on_selector(".compare", "(box) => box.style.getPropertyValue('--at')") == f"{before + 5}%"
    page.keyboard.press("Escape")
    expect(page.locator("#sheet button").first).to_be_focused()


def test_the_slider_moves_by_touch(open_page, file):
    page = open_page(file, PHONE, has_touch=True, is_mobile=True)
    page.locator("#sheet button").first.tap()
    box = page.locator(".compare").bounding_box()
    page.touchscreen.tap(box["x"] + 0.9 * box["width"], box["y"] + 0.5 * box["height"])
    assert int(page.get_by_role("slider").input_value()) > 80


def test_pictures_are_loaded_when_they_come_into_sight(open_page, file):
    page = open_page(file)
    last = page.locator("#sheet img").last
    assert page.evaluate("document.querySelector('#packed-pictures').textContent.length") > 1000
    last.scroll_into_view_if_needed()
    expect(last).to_have_js_property("complete", True)
    assert last.evaluate("(image) => image.decode().then(() => image.naturalWidth)") == 32


def test_the_page_knows_where_every_output_lies(open_page, file, rows):
    page = open_page(file)
    found = page.evaluate("() => readRows().then((rows) => rows.key.codes.map((_, row) => place(rows, row) ?? null))")
    assert found == [row["output_uri"] for row in rows]


@pytest.mark.parametrize(("key", "reason"), [(GONE, "the source is gone"), (BROKEN, "no image was made: decode_error")])
def test_a_picture_that_is_missing_is_explained(open_page, file, key, reason):
    page = open_page(file, hash_=f"#key={key}")
    page.locator("#sheet button").first.click()
    expect(page.locator("dialog .missing")).to_contain_text(reason)


def test_a_row_without_pictures_says_where_its_output_lies(open_page, store, rows, tmp_path):
    report = replace(ReportReader(store).read(), pictures={})
    (tmp_path / "report.html").write_bytes(render(report, None))
    row = next(row for row in rows if row["output_uri"])
    page = open_page(tmp_path / "report.html", hash_=f"#status=ok&key={row['key']}")
    page.locator("#grid td button").first.click()
    expect(page.locator("dialog")).to_contain_text("This report holds no pictures of this row.")
    expect(page.locator("dialog dl")).to_contain_text(row["output_uri"])


def test_a_key_is_text_whatever_it_says(open_page, file):
    page = open_page(file, hash_="#key=onerror")
    assert set(shown(page, "key")) == {HOSTILE}
    page.locator("#sheet button").first.click()
    expect(page.locator("dialog h2")).to_contain_text(HOSTILE)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_scrolls_sideways_on_a_phone(open_page, file, scheme):
    page = open_page(file, PHONE, color_scheme=scheme, has_touch=True)
    assert page.evaluate(SCROLLS_SIDEWAYS) == []
    page.locator("#sheet button").first.tap()
    assert page.evaluate(SCROLLS_SIDEWAYS) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_has_a_name_and_shows_its_focus_and_text_is_to_be_read(open_page, file, scheme):
    page = open_page(file, color_scheme=scheme)
    assert page.evaluate(NAMELESS) == []
    for _ in range(12):
        page.keyboard.press("Tab")
        width = page.evaluate("parseFloat(getComputedStyle(document.activeElement).outlineWidth)")
        assert width >= 3 and page.evaluate("document.activeElement !== document.body")
    for ink in ("--ink", "--faint", "--accent", "--reader"):
        for paper in ("--paper", "--raised"):
            assert contrast(page, ink, paper) >= 4.5, (ink, paper)


def contrast(page: Page, ink: str, paper: str) -> float:
    """The contrast ratio of two colours of the page (WCAG 2.2)."""
    brighter, darker = sorted((luminance(page, ink), luminance(page, paper)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


def luminance(page: Page, name: str) -> float:
    text = page.evaluate("(name) => getComputedStyle(document.documentElement).getPropertyValue(name)", name).strip(
        "# "
    )
    digits = "".join(2 * digit for digit in text) if len(text) == 3 else text
    channels = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_page_of_a_run_at_work_reloads_itself_unless_paused_and_keeps_its_filters(open_page, tmp_path):
    seconds = 2.0
    resolved = resolve(
        spec(make_faces(tmp_path / "faces", 6), tmp_path / "run", edits=["glasses=1", "smile=1"], shard_size=2)
    )
    file = tmp_path / "report.html"

    def write(shards: list[int], reload_seconds: float | None) -> None:
        run_here(resolved, make=stand_in_stages, shards=shards)
        file.write_bytes(render(ReportReader(Store(resolved.spec.output)).read(), reload_seconds))

    write([0], seconds)
    page = open_page(file)
    pause = page.get_by_role("button", name="Pause reloading")
    pause.click()
    page.evaluate("window.isTheSame = true")
    field(page, "edit").select_option("smile 1")
    field(page, "key").fill("00")
    page.locator('#grid th[data-column="key"] button').click()
    expect(page.locator("#count")).to_have_text("2 of 4 rows.")
    write([1, 2], None)
    page.wait_for_timeout(1000 * (seconds + 0.5))
    expect(pause).to_have_attribute("aria-pressed", "true")
    assert page.evaluate("window.isTheSame") and counted(page) == 2
    with page.expect_navigation():
        pause.click()
    expect(page.locator("#count")).to_have_text("6 of 12 rows.")
    expect(field(page, "edit")).to_have_value("smile 1")
    expect(page.locator('#grid th[data-column="key"]')).to_have_attribute("aria-sort", "ascending")
    expect(pause).to_have_count(0)


def test_only_the_rows_in_sight_are_in_the_document_and_all_can_be_reached(open_page, tmp_path):
    resolved = resolve(spec(make_faces(tmp_path / "faces", 150), tmp_path / "run", edits=["glasses=1", "smile=1"]))
    run_here(resolved, make=stand_in_stages)
    file = tmp_path / "report.html"
    file.write_bytes(render(ReportReader(Store(resolved.spec.output)).read(), None))
    page = open_page(file)
    seen: set[str] = set()
    while "301" not in seen:
        lines = page.locator("#grid tbody tr:not(.space)")
        there = lines.evaluate_all("(lines) => lines.map((line) => line.getAttribute('aria-rowindex'))")
        assert (len(there) < 100 and not seen) or set(there) & seen
        seen |= set(there)
        page.eval_on_selector("#scroller", "(box) => box.scrollBy(0, 0.9 * box.clientHeight)")
        page.evaluate("() => new Promise(requestAnimationFrame).then(() => new Promise(requestAnimationFrame))")
    assert seen == {str(number) for number in range(2, 302)}
