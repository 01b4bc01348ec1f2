"""The page in a real browser; skipped where there is none."""

import contextlib
import io
import os
import shutil
import time
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("playwright")
from playwright import sync_api

from tests.unified.parts import babyai_parts, ongoing
from tests.unified.play.stage import house, serving
from unified.media.actions import ContinuousActions, KeyboardMouseActions, MultiDiscreteActions
from unified.play.engine import Engine

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
FRAMES = "document.querySelectorAll('.thumb').length"
NOW = "document.querySelector('.thumb[aria-current=true]').dataset.node"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def address(engine):
    with serving(house(engine), most=20) as (where, _, _):
        yield f"http://{where}"


def until(page, condition):
    """Waits; playwright's own way would need `eval`, which the page forbids."""
    deadline = time.monotonic() + 20
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(15)


@contextlib.contextmanager
def page_at(browser, link, width=1280, **options):
    """A page that has drawn its first frame, and says nothing on the console."""
    viewport = {"width": width, "height": 860}
    context = browser.new_context(viewport=viewport, accept_downloads=True, **options)
    page = context.new_page()
    page.set_default_timeout(15_000)
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(link)
    until(page, f"{FRAMES} >= 1")
    yield page
    assert said == []
    context.close()


def press(page, key, frames):
    page.keyboard.press(key)
    until(page, f"{FRAMES} === {frames}")


def test_twenty_keys_make_twenty_frames_that_go_back_and_fork(browser, address):
    with page_at(browser, f"{address}/#level=Count&seed=5&world=both") as page:
        for number in range(20):
            key = ("ArrowLeft", "ArrowUp", "ArrowRight", " ", "p")[number % 5]
            press(page, key, number + 2)
        assert page.inner_text("#where").startswith("frame 20 of 20")
        assert "differs from frame 1 on" in page.inner_text("#where")
        assert page.locator(".thumb.differs").count() == 1
        assert page.locator("#views canvas").count() == 3
        page.keyboard.press("Backspace")
        until(page, f"{NOW} === '19'")
        press(page, "d", 22)
        assert page.locator(".lane").count() == 2
        assert page.inner_text("#where").startswith("frame 20 of 20, 2 lanes")
        page.locator(".lane-name button").click()
        assert page.locator("#views canvas").count() == 4
        page.locator(".thumb").nth(2).click()
        until(page, f"{NOW} === '2'")
        press(page, "Enter", 23)
        assert page.locator(".lane").count() == 3


def test_with_the_keyboard_alone_seats_change_a_task_is_given_and_a_question_asked(
    browser, address
):
    with page_at(browser, f"{address}/#level=Count&seed=6") as page:
        press(page, "ArrowLeft", 2)
        page.keyboard.press("m")
        until(page, f"{FRAMES} >= 4")
        page.keyboard.press("m")
        page.wait_for_selector("#agents [data-value=human][aria-checked=true]")
        page.wait_for_timeout(300)
        count = page.evaluate(FRAMES)
        page.keyboard.press("t")
        page.keyboard.type("open the door")
        page.keyboard.press("Enter")
        page.wait_for_selector("#log .next")
        page.keyboard.press("Escape")
        press(page, "ArrowUp", count + 1)
        assert page.inner_text("#task") == "open the door"
        assert "open the door" in page.inner_text("#log .task:last-child")
        page.select_option("#say-what", "ask")
        page.locator("#say-words").press("Enter")
        page.wait_for_selector("#log .answer")
        page.wait_for_selector("#mind-body .bars")
        page.click(".drawn button")
        page.wait_for_selector(".steps img")
        assert page.locator(".steps img").count() == 2
        page.locator("#worlds [data-value=real]").press("Enter")
        page.wait_for_selector("#worlds [data-value=real][aria-checked=true]")
        page.locator("body").press("ArrowUp")
        until(page, f"{FRAMES} === {count + 2}")
        assert page.inner_text("#views figcaption span:first-child") == "reality"


def test_a_share_link_plays_again_and_what_was_kept_is_whole(browser, address):
    with page_at(browser, f"{address}/#level=Count&seed=7&world=both") as page:
        for number in range(3):
            press(page, "ArrowLeft", number + 2)
        with page.expect_download() as kept:
            page.click("#record")
        with zipfile.ZipFile(io.BytesIO(Path(kept.value.path()).read_bytes())) as archive:
            assert "episodes.jsonl" in archive.namelist()
        with page.expect_download() as kept:
            page.click("#gif")
        assert Path(kept.value.path()).read_bytes()[:6] == b"GIF89a"
        page.click("#share")
        page.wait_for_selector("#shared:not([hidden])")
        link = page.input_value("#shared input")
    with page_at(browser, link) as page:
        until(page, f"{FRAMES} === 4")
        page.wait_for_selector("text=every frame is as it was")


def test_the_second_tab_asks_any_conversation_and_tells_how_to_repeat_it(browser, address):
    with page_at(browser, f"{address}/#level=Count&seed=8") as page:
        page.click("#tab-prompt")
        page.click("[data-add=present]")
        page.wait_for_selector("#items img")
        page.click("[data-add=action]")
        page.select_option("#query", "forward")
        page.click("#ask button")
        page.wait_for_selector("#repeat:not([hidden])")
        assert page.locator("#reply img").count() == 1
        assert "query='forward'" in page.inner_text("#python")
        page.click("#ask button")
        page.wait_for_selector("#reply img")


def test_a_reloaded_page_goes_on_where_it_was(browser, address):
    with page_at(browser, f"{address}/#level=Count&seed=9") as page:
        press(page, "ArrowLeft", 2)
        press(page, "ArrowUp", 3)
        page.reload()
        until(page, f"{FRAMES} === 3")
        press(page, "ArrowUp", 4)


def test_text_is_never_html(browser, address):
    words = "<img src=x onerror=console.log(1)>"
    with page_at(browser, f"{address}/#level=Count&seed=10") as page:
        page.fill("#say-words", words)
        page.press("#say-words", "Enter")
        page.wait_for_selector("#log .next")
        assert page.inner_text("#task") == words
        assert page.locator("#log img, #task img").count() == 0


def test_keys_are_chosen_anew_and_kept(browser, address):
    with page_at(browser, f"{address}/#level=Count&seed=11") as page:
        page.click("[data-action=toggle] kbd")
        page.keyboard.press("x")
        press(page, "x", 2)
        assert "toggle" in page.inner_text("#state")
        page.reload()
        until(page, f"{FRAMES} === 2")
        assert page.inner_text("[data-action=toggle] kbd") == "x"


SPACES = [
    (MultiDiscreteActions("pad", {"move": ["left", "right"], "jump": 2}), "Enter", "left 0"),
    (
        ContinuousActions.between("arm", ["x", "y"], [-1, -1], [1, 1], bins=8),
        "Enter",
        "-0.13 -0.13",
    ),
    (ContinuousActions.between("arm", ["x"], [-1], [1], bins=8, chunk=2), "Enter", "0.88 0.88"),
    (KeyboardMouseActions("game", ["w", "space"], mouse=10), "w", "w 0.0 0.0"),
]


@pytest.mark.parametrize(("space", "key", "words"), SPACES, ids=lambda x: getattr(x, "kind", ""))
def test_actions_that_are_no_names_have_controls_of_their_own(browser, space, key, words):
    model, processor = babyai_parts()
    processor = processor.with_action_space(space)
    model.adopt(processor)
    engine = Engine(*ongoing(model, processor), steps=1)
    with serving(house(engine, None)) as (address, _, _):
        context = browser.new_context()
        page = context.new_page()
        if getattr(space, "chunk", 1) > 1:  # a gamepad pushes all the way
            page.add_init_script("navigator.getGamepads = () => [null, {axes: [1]}]")
        page.goto(f"http://{address}/")
        page.wait_for_selector("#open[open]")
        page.fill("#open-task", "go to the red ball")
        page.press("#open-task", "Enter")
        until(page, f"{FRAMES} === 1")
        page.locator("#open-task").blur()
        press(page, key, 2)
        assert page.inner_text("#state") == f"you: {words}"
        if space.kind == "keyboard_mouse":
            page.click("#controls button")  # frames follow each other while the pointer is taken
            until(page, f"{FRAMES} >= 4 && document.pointerLockElement !== null")
            page.evaluate("document.exitPointerLock()")
            until(page, "document.pointerLockElement === null")
        page.keyboard.press("m")
        until(page, f"{FRAMES} >= 3")
        context.close()
    engine.close()


@pytest.mark.parametrize("width", [375, 1280])
def test_nothing_hangs_over_the_edge(browser, address, width):
    with page_at(browser, f"{address}/#level=Count&seed=12&world=both", width) as page:
        press(page, "ArrowLeft", 2)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.click("#tab-prompt")
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_link_to_a_level_that_is_not_offered_leaves_another_way_in(browser, address):
    page = browser.new_page()
    page.goto(f"{address}/#level=Nowhere")
    page.wait_for_selector("#open[open]")
    assert "Level 'Nowhere' is not offered" in page.inner_text("#notice")
    assert page.locator("#run").is_hidden()
    page.click("#open-level button:not([type])")
    until(page, f"{FRAMES} === 1")
    page.close()


def test_the_second_tab_begins_with_the_present_task(browser, address):
    with page_at(browser, f"{address}/#level=Count&seed=13") as page:
        page.click("#tab-prompt")
        assert page.input_value("#items input") == page.text_content("#task")
        assert page.locator("#keys").is_hidden()
        page.click("#tab-play")
        page.click("#tab-prompt")
        assert page.locator("#items li").count() == 1


def test_what_goes_wrong_is_said_where_one_has_scrolled_to(browser, address):
    with page_at(browser, f"{address}/#level=Count&seed=14", width=375) as page:
        page.evaluate("window.scrollTo(0, 400)")
        page.locator("#share").click()
        page.wait_for_selector("#notice:not([hidden])")
        box = page.locator("#notice").bounding_box()
        assert box is not None
        assert 0 <= box["y"] < 860
