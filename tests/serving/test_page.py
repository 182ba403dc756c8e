"""The page in a real browser, from a real server: it writes, colours, and asks nobody else."""

import json
import time

import pytest

from tests.browser import look
from tests.serving.conftest import make_model, served

WAIT_S = 60


@pytest.fixture(scope="module")
def server():
    """A model with a head of each pattern and some look-ups."""
    model = make_model(pattern="local:3/strided:4,dense", recent_tokens=2, ngrams=(2,))
    with served(model, max_tokens_limit=10**6) as server:
        yield server


@pytest.fixture
def page(browser, server):
    """The page, ready and as it is at first."""
    look(browser)
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(server.address)
    until(lambda: said(browser, "ready"))
    yield browser
    assert said(browser, "errors") is None


def said(browser, name):
    return browser.execute_script("return document.documentElement.dataset[arguments[0]]", name)


def until(true):
    """Wait until something is true, and return it."""
    end = time.monotonic() + WAIT_S
    while not (found := true()):
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)
    return found


def find(page, selector):
    return page.find_element("css selector", selector)


def text_of(page, selector):
    return page.execute_script("return document.querySelector(arguments[0]).textContent", selector)


def set_value(page, selector, value):
    page.execute_script(
        "document.querySelector(arguments[0]).value = arguments[1]", selector, value
    )


def measure(page, text):
    set_value(page, "#given", text)
    find(page, "#measure").click()
    until(lambda: "bits per byte" in text_of(page, "#measured"))


def cells(page):
    return page.execute_script(
        "return [...document.querySelectorAll('.cell')].map((cell) =>"
        " [cell.textContent, [...cell.classList]])"
    )


def reads(page):
    """The numbers of the cells that are marked as read, once they are those of the chosen one."""
    return page.execute_script(
        "return [...document.querySelectorAll('.cell.reads')].map((cell) => +cell.dataset.at)"
    )


def test_it_says_what_it_is_and_asks_nobody_else(page, server):
    assert text_of(page, "h1") == "small" and "local:3/strided:4,dense" in text_of(page, "#facts")
    assert f"{server.address}/v1" in text_of(page, "#base")
    assert [entry for entry in page.get_log("browser") if entry["level"] != "INFO"] == []
    told = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = [
        message["params"]["request"]["url"]
        for message in told
        if message["method"] == "Network.requestWillBeSent"
    ]
    paths = {url.removeprefix(server.address) for url in asked if not url.startswith("data:")}
    assert paths == {"/", "/page.css", "/page.js", "/surprise.js", "/about"}


def test_it_writes(page):
    set_value(page, "[name=max_tokens]", 40)
    set_value(page, "[name=seed]", 5)
    find(page, "#prompt").send_keys("ab<b>c</b>")
    find(page, "#go").click()
    until(lambda: "40 tokens" in text_of(page, "#status"))
    first = text_of(page, "#text")
    assert first.startswith("ab<b>c</b>") and len(first) > 15
    assert page.execute_script("return document.querySelectorAll('#text b').length") == 0
    find(page, "#go").click()
    until(lambda: "40 tokens" in text_of(page, "#status") and find(page, "#go").is_enabled())
    assert text_of(page, "#text") == first  # the seed is the same
    find(page, "#go-on").click()
    until(lambda: len(text_of(page, "#text")) > len(first) and find(page, "#go").is_enabled())
    assert text_of(page, "#text").startswith(first)


@pytest.mark.parametrize("how", ["button", "key"])
def test_it_stops(page, server, how):
    from selenium.webdriver.common.keys import Keys

    set_value(page, "[name=max_tokens]", 10**6)
    find(page, "#prompt").send_keys("a" + Keys.CONTROL + Keys.ENTER)
    until(lambda: len(text_of(page, "#text")) > 20)
    if how == "button":
        find(page, "#stop").click()
    else:
        find(page, "#prompt").send_keys(Keys.ESCAPE)
    until(lambda: text_of(page, "#status") == "stopped")
    until(lambda: server.worker._slots.free == 4)
    assert find(page, "#go").is_enabled() and not find(page, "#stop").is_enabled()


def test_what_is_refused_is_shown(page):
    set_value(page, "[name=seed]", 10**300)
    find(page, "#go").click()
    error = find(page, "#write-error")
    until(error.is_displayed)
    assert error.text.startswith("Not done: seed is 1e+300")
    find(page, "#measure").click()
    error = find(page, "#score-error")
    until(error.is_displayed)
    assert error.text == "Not done: text is empty; there is nothing to score"
    # A refused request is no error of the page, but the browser notes its status.
    assert all("status of 400" in entry["message"] for entry in page.get_log("browser"))


def test_surprise_is_seen_byte_by_byte(page, server):
    from selenium.webdriver.common.action_chains import ActionChains

    text = "a b\n€é😀<i>\tz, and more than the context of 32 tokens"
    measure(page, text)
    data = text.encode()
    found = cells(page)
    assert len(found) == len(data)
    assert "".join(shown for shown, _ in found if shown != "\u00b7") == text
    assert sum("inside" in classes for _, classes in found) == len(data) - len(text)
    told = json_of(page, "/surprise", {"text": text})
    colours = [f"s{min(16, int(2 * bits))}" for bits in told["surprise"]]
    assert [next(c for c in classes if c[0] == "s") for _, classes in found] == colours
    assert text_of(page, "#measured").startswith(f"{told['bits_per_byte']:.3f} bits per byte")
    at = 40
    where = page.execute_script("return document.querySelectorAll('.cell')[arguments[0]]", at)
    ActionChains(page).move_to_element(where).perform()
    until(lambda: "could read" in text_of(page, "#read"))
    assert f"{told['surprise'][at]:.2f} bits" in text_of(page, "#here .figure")
    others = told["top"][at]
    rows = "return document.querySelectorAll('#here tbody tr').length"
    assert page.execute_script(rows) == len({*others, data[at]})
    assert page.execute_script("return document.querySelectorAll('#here tr.own').length") == 1
    assert "looks up the last 2 tokens, n-grams of 2 tokens" in text_of(page, "#besides")


@pytest.mark.parametrize(("layer", "head"), [(0, 0), (0, 1), (1, 1)])
def test_what_a_head_could_read_is_marked(page, server, layer, head):
    from sparse_tx.serving.surprise import tokens_read

    text = "a text that is quite a bit longer than the context of 32"
    measure(page, text)
    page.execute_script(
        "for (const [id, value] of [['layer', arguments[0]], ['head', arguments[1]]]) {"
        " const field = document.getElementById(id); field.value = value;"
        " field.dispatchEvent(new Event('change')); }",
        layer,
        head,
    )
    config = server.server.worker._model.config
    for at in (0, 1, 20, 40):
        page.execute_script("document.querySelectorAll('.cell')[arguments[0]].click()", at)
        wanted = tokens_read(config, layer=layer, head=head, token=at)
        expected = sorted({token for some in wanted.tokens for token in some})
        until(lambda expected=expected: reads(page) == expected)
        sentence = f"could read {len(expected)} byte"
        until(lambda sentence=sentence: sentence in text_of(page, "#read"))
        assert ("and the start symbol" in text_of(page, "#read")) == wanted.start_symbol


def test_the_keyboard_is_enough(page):
    from selenium.webdriver.common.keys import Keys

    measure(page, "abc defg")
    place = find(page, "#cells")
    place.send_keys(Keys.ARROW_RIGHT)
    place.send_keys(Keys.ARROW_RIGHT)
    assert text_of(page, ".cell.chosen") == "b"
    place.send_keys(Keys.END)
    assert text_of(page, ".cell.chosen") == "g"
    place.send_keys(Keys.ARROW_LEFT)
    assert text_of(page, ".cell.chosen") == "f"
    place.send_keys(Keys.HOME)
    assert text_of(page, ".cell.chosen") == "a"
    assert "pinned" in place.get_attribute("class")
    place.send_keys(Keys.ESCAPE)
    assert "pinned" not in place.get_attribute("class")


@pytest.mark.parametrize("width", [1400, 420])
def test_it_fits_any_width_and_follows_the_theme(page, width):
    measure(page, "a_very_long_word_without_a_space" * 9 + "\n" + "words " * 99)
    set_value(page, "[name=max_tokens]", 30)
    find(page, "#go").click()
    until(lambda: "30 tokens" in text_of(page, "#status"))
    colours = set()
    for theme in ("light", "dark"):
        look(page, width, theme)
        colours.add(page.execute_script("return getComputedStyle(document.body).backgroundColor"))
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
    assert len(colours) == 2


def json_of(page, path, body):
    return page.execute_async_script(
        "fetch(arguments[0], {method: 'POST', body: JSON.stringify(arguments[1])})"
        ".then((answer) => answer.json()).then(arguments[2])",
        path,
        body,
    )
