"""The page in a real browser: what a visitor does and sees."""

import contextlib
import shutil
import threading

import pytest
from playwright.sync_api import expect, sync_playwright

from groundup.cli.page import build_page
from groundup.cli.playground import load_player, serve
from groundup.inference.generation import stream_text

pytestmark = pytest.mark.slow

WAIT = 60_000  # ms; a busy machine is slow, a broken page never ends
PROMPT = "The cat sat"


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.fail("these tests need Chromium on the PATH: apt-get install chromium")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path)
        yield running
        running.close()


@pytest.fixture(scope="module")
def url(folders):
    """Yield a page with two models: one only pretrained, one taught to converse."""
    page = build_page([load_player(str(folders / name)) for name in ("pretrained", "taught")])
    yield serve(page)
    page.close(verbose=False)


@pytest.fixture(params=[1280, 390], ids=["desktop", "phone"])
def width(request):
    return request.param


@pytest.fixture
def visit(browser, url):
    """Open the page as a new visitor, at a width in pixels; whatever it says to its console as an error is kept."""
    contexts = []

    def open_page(width=1280):
        context = browser.new_context(viewport={"width": width, "height": 844})
        context.set_default_timeout(WAIT)
        contexts.append(context)
        page = context.new_page()
        page.requested, page.complaints = [], []
        page.on("response", lambda response: page.requested.append(response.url))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("console", lambda said: page.complaints.append(said.text) if said.type == "error" else None)
        page.goto(url)
        page.get_by_label("prompt").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()


def to_tab(page, name):
    page.get_by_role("tab", name=name).click()


def write(page, prompt=PROMPT):
    page.get_by_label("prompt").fill(prompt)
    page.get_by_label("prompt").press("Enter")


def notes(page):
    return page.locator(".note:visible")


def look(page, text):
    to_tab(page, "Inside")
    page.get_by_label("text").fill(text)
    page.get_by_label("text").press("Enter")
    page.locator(".chip").first.wait_for()


def test_both_models_go_on_from_a_prompt(visit, width):
    page = visit(width)
    write(page)
    expect(notes(page).nth(1)).to_contain_text("tokens/s", timeout=WAIT)
    for column in page.locator(".written").all():
        expect(column).to_contain_text(PROMPT)
    assert page.complaints == []


def test_the_end_of_the_context_and_a_prompt_too_long_are_said(visit):
    page = visit()
    write(page, "The dog and " * 60)
    for note in (notes(page).nth(0), notes(page).nth(1)):
        expect(note).to_contain_text("only the last 48, the model's context, were read", timeout=WAIT)
    said = page.get_by_text("longer than the model's context of 48 tokens").first
    for _ in range(WAIT // 1000):  # what is asked while the first answer ends is not heard
        write(page, "The cat sat on the mat. The dog sat on the log, and the frog in the bog.")
        with contextlib.suppress(AssertionError):
            expect(said).to_be_visible(timeout=1000)
            break
    expect(said).to_be_visible()


def test_what_is_written_is_shown_as_written_and_never_run(visit):
    page = visit()
    evil = "<b>x</b> ${1+1} `y` {{value}}"
    write(page, evil)
    expect(page.locator(".written .prompt").first).to_have_text(evil, timeout=WAIT)
    to_tab(page, "Chat")
    page.get_by_role("textbox", name="message").fill(evil)
    page.get_by_role("textbox", name="message").press("Enter")
    expect(page.locator(".message.user").first).to_contain_text(evil, timeout=WAIT)
    look(page, evil)
    assert "".join(page.locator(".chip").all_inner_texts()).replace("·", " ") == evil


def test_a_conversation_goes_on_and_begins_anew_and_what_is_typed_meanwhile_is_kept(visit, monkeypatch):
    answered = threading.Event()

    def stream(model, tokenizer, ids, sampling, **_):
        while not answered.wait(0.05):
            yield "on "
        return "length"

    monkeypatch.setattr("groundup.inference.writing.stream_text", stream)
    page = visit()
    to_tab(page, "Chat")
    expect(page.get_by_text("pretrained was not trained on conversations")).to_be_visible()
    message, send = page.get_by_role("textbox", name="message"), page.get_by_role("button", name="Send")
    message.fill("dog?")
    send.click()
    expect(message).to_have_value("", timeout=WAIT)
    expect(page.locator(".message.user").filter(has_text="dog?")).to_have_count(2, timeout=WAIT)
    message.fill("cat?")
    page.wait_for_timeout(1000)
    answered.set()
    expect(message).to_have_value("cat?")
    for _ in range(WAIT // 1000):
        send.click()  # heard once the first answer is over
        page.wait_for_timeout(1000)
        if message.input_value() == "":
            break
    expect(page.locator(".message.user").filter(has_text="cat?")).to_have_count(2, timeout=WAIT)
    page.get_by_role("button", name="New").click()
    expect(page.locator(".message.user")).to_have_count(0, timeout=WAIT)


def test_a_text_is_taken_apart(visit, width, folders):
    page = visit(width)
    look(page, "The cat sat on the mat.")
    tokens = len(load_player(str(folders / "pretrained")).lens.look("The cat sat on the mat.").tokens)
    expect(page.locator(".chip")).to_have_count(tokens)
    page.locator(".chip").nth(2).click()
    expect(page.get_by_role("heading", name=f"(token 3 of {tokens}) the model expects")).to_be_visible()
    assert page.locator('[data-part="expected"] .bar').count() == 10
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("heading", name=f"(token 4 of {tokens})")).to_be_visible()
    page.get_by_label("layer 3").click()
    page.get_by_label("head 2").click()
    expect(page.get_by_role("heading", name="Layer 3, head 2")).to_be_visible(timeout=WAIT)
    expect(page.get_by_role("heading", name=f"(token 4 of {tokens})")).to_be_visible()
    assert page.locator('[data-part="looks"] .bar').count() == 4  # the fourth token sees four
    page.get_by_role("button", name="attention", exact=True).click()
    assert page.complaints == []


def test_a_text_just_written_is_seen_inside(visit):
    page = visit()
    write(page)
    expect(notes(page).nth(1)).to_contain_text("tokens/s", timeout=WAIT)
    page.wait_for_function("document.querySelectorAll('.generating').length === 0")
    page.get_by_role("button", name="See inside").click()
    page.locator(".chip").first.wait_for()
    assert page.get_by_label("text").input_value().startswith(PROMPT)


def test_every_tab_fits_and_asks_nobody_else_for_anything(visit, width, url):
    page = visit(width)
    write(page)
    look(page, PROMPT)
    for tab in ("Complete", "Chat", "Inside", "About"):
        to_tab(page, tab)
        page.get_by_role("tab", name=tab, selected=True).wait_for()
        page.wait_for_timeout(300)  # lazily loaded parts
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), tab
    for card in page.get_by_role("button", name="The card").all():
        card.click()
    expect(page.get_by_role("heading", name="A card").first).to_be_visible()
    page.wait_for_timeout(300)
    elsewhere = {at for at in page.requested if not at.startswith((url, "data:", "blob:"))}
    assert elsewhere == set()
    # The card holds a picture from elsewhere; nothing else may even try.
    assert all("elsewhere.test" in complaint for complaint in page.complaints), page.complaints


def test_a_visitor_is_not_kept_waiting_by_another_and_stop_stops(visit, monkeypatch):
    going_on = threading.Event()
    pieces = []

    def stream(model, tokenizer, ids, sampling, **options):
        if "endless" not in tokenizer.decode(ids):
            return (yield from stream_text(model, tokenizer, ids, sampling, **options))
        while not going_on.wait(0.05):
            pieces.append("on ")
            yield "on "
        return "length"

    monkeypatch.setattr("groundup.inference.writing.stream_text", stream)
    first, second = visit(), visit()
    write(first, "endless")
    expect(first.locator(".written").first).to_contain_text("on on", timeout=WAIT)
    write(second)
    expect(second.locator(".note").nth(1)).to_contain_text("tokens/s", timeout=WAIT)
    look(second, PROMPT)
    first.get_by_role("button", name="Stop").first.click()
    first.wait_for_timeout(1000)
    stopped = len(pieces)
    first.wait_for_timeout(500)
    going_on.set()
    assert len(pieces) <= stopped + 1
