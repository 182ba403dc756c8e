"""The page in a real browser, opened as a file: it renders, reacts, and asks nothing of the net."""

import json
import time

import pytest

from sparse_tx.profiler.report import write_report
from sparse_tx.profiler.report.bars import parts_plots
from sparse_tx.profiler.report.palette import LIGHT
from sparse_tx.profiler.report.plots import agreement_plots, cost_plots
from tests.browser import look
from tests.profiler.examples import NASTY_LABEL, nasty_profile, realistic_profile

READY_SECONDS = 60

# The text of all ticks whose boxes meet another's on the same axis, or leave the card.
MISPLACED_TICKS = """
const wrong = [];
for (const place of document.querySelectorAll(".plot")) {
  const card = place.getBoundingClientRect();
  for (const axis of ["xtick", "ytick"]) {
    const boxes = [...place.querySelectorAll(`.${axis} text`)].map((tick) =>
      [tick.textContent, tick.getBoundingClientRect()]);
    boxes.forEach(([text, box], at) => {
      if (box.left < card.left - 1 || box.right > card.right + 1) wrong.push(text);
      for (const [, other] of boxes.slice(at + 1)) {
        if (box.left < other.right && other.left < box.right &&
            box.top < other.bottom && other.top < box.bottom) wrong.push(text);
      }
    });
  }
}
return wrong;
"""


def open_page(browser, path, width=1400, theme="light"):
    """Open a page from its file and wait until it says that it is ready."""
    look(browser, width, theme)
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(path.as_uri())
    end = time.monotonic() + READY_SECONDS
    while not said(browser, "ready"):
        assert time.monotonic() < end, "the page is not ready"
        time.sleep(0.05)


def said(browser, name):
    """What the page's root element says: ready, plots or errors."""
    return browser.execute_script("return document.documentElement.dataset[arguments[0]]", name)


def settle(browser):
    """Wait until plots have been drawn again."""
    browser.execute_async_script("setTimeout(arguments[0], 400)")


def column(browser, number):
    """The texts of one column of the table of settings, of the rows that are shown."""
    return browser.execute_script(
        "return [...document.querySelectorAll('#settings tbody tr:not([hidden])')]"
        ".map((row) => row.cells[arguments[0]].textContent)",
        number,
    )


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):
    """The page of a realistic profile, opened once; tests leave it as they found it."""
    path = write_report(realistic_profile(), tmp_path_factory.mktemp("report"))["html"]
    open_page(browser, path)
    return browser


def test_page_renders_and_asks_for_nothing(page):
    assert said(page, "errors") is None
    assert [entry for entry in page.get_log("browser") if entry["level"] != "INFO"] == []
    profile = realistic_profile()
    plots = [*cost_plots(profile, "train"), *agreement_plots(profile)]
    plots += parts_plots(profile, "train")
    assert int(said(page, "plots")) == len(plots) == 8
    marks = "return [...document.querySelectorAll('.plot')].map((place) =>"
    marks += " place.querySelectorAll('.trace').length)"
    assert page.execute_script(marks) == [len(plot.data) for plot in plots]
    pictures = page.execute_script("return [...document.images].map((own) => own.naturalWidth)")
    assert len(pictures) == 3 and min(pictures) > 100
    told = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = [
        message["params"]["request"]["url"]
        for message in told
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert any(url.endswith("profile.html") for url in asked)
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


@pytest.mark.parametrize("width", [1400, 800, 420])
def test_nothing_overlaps_or_is_cut_at_any_width(page, width):
    look(page, width)
    settle(page)
    assert page.execute_script(MISPLACED_TICKS) == []
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    drawn = "return [...document.querySelectorAll('.plot')].map((place) =>"
    drawn += " place._fullLayout.width - place.clientWidth)"
    assert set(page.execute_script(drawn)) == {0}
    assert said(page, "errors") is None


def test_plots_follow_the_theme(page):
    colour = "return getComputedStyle(document.querySelector('.xtick text')).fill"
    look(page, theme="light")
    settle(page)
    light = page.execute_script(colour)
    look(page, theme="dark")
    settle(page)
    assert page.execute_script(colour) != light
    look(page)


def test_table_is_sorted_by_clicks_and_keys(page):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    look(page)
    headings = page.find_elements(By.CSS_SELECTOR, "#settings th")
    names = [heading.text.replace("\n", " ") for heading in headings]
    at = next(number for number, name in enumerate(names) if "FLOPs" in name)
    values = [sum(row.prediction.useful_flops.values()) for row in realistic_profile().rows]
    before = column(page, at)
    by_value = [before[n] for n in sorted(range(len(values)), key=values.__getitem__)]
    button = headings[at].find_element(By.TAG_NAME, "button")
    button.click()
    assert headings[at].get_attribute("aria-sort") == "ascending"
    assert column(page, at) == by_value
    button.send_keys(Keys.ENTER)
    assert headings[at].get_attribute("aria-sort") == "descending"
    assert column(page, at) == by_value[::-1]
    first = headings[0].find_element(By.TAG_NAME, "button")
    first.click()
    assert headings[at].get_attribute("aria-sort") == "none"
    assert column(page, 0) == sorted(column(page, 0))


def test_rows_without_a_value_come_last(page):
    from selenium.webdriver.common.by import By

    look(page)
    headings = page.find_elements(By.CSS_SELECTOR, "#settings th")
    at = next(n for n, heading in enumerate(headings) if "measured" in heading.text)
    for _ in range(2):
        headings[at].find_element(By.TAG_NAME, "button").click()
        assert set(column(page, at)[-2:]) == {"failed [1]", "-"}


def test_rows_are_filtered(page):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    look(page)
    field = page.find_element(By.ID, "filter")
    field.send_keys("LOCAL 65,536")
    assert column(page, 0) == ["local:128,strided:128"]
    assert page.find_element(By.ID, "shown").text == "1 of 15 rows"
    field.clear()
    field.send_keys("no such thing")
    assert column(page, 0) == []
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(Keys.DELETE)
    assert len(column(page, 0)) == 15


def test_patterns_are_hidden_in_all_plots(page):
    from selenium.webdriver.common.by import By

    look(page)
    traces = (
        "return [...document.querySelectorAll('.plot')].map((place) => place._fullData"
        ".filter((trace) => trace.visible && trace.meta && trace.meta.series === 'dense').length)"
    )
    assert sum(page.execute_script(traces)) > 5
    button = page.find_element(By.CSS_SELECTOR, ".key button")
    button.click()
    settle(page)
    assert button.get_attribute("aria-pressed") == "false"
    assert sum(page.execute_script(traces)) == 0
    button.click()
    settle(page)
    assert sum(page.execute_script(traces)) > 5
    assert said(page, "errors") is None


def test_a_zoomed_plot_has_ticks(page):
    look(page)
    page.execute_script(
        "Plotly.relayout(document.getElementById('plot-seconds-train'),"
        " {'yaxis.range': [Math.log10(2), Math.log10(9)]})"
    )
    settle(page)
    ticks = page.execute_script(
        "return [...document.querySelectorAll('#plot-seconds-train .ytick text')]"
        ".map((tick) => tick.textContent)"
    )
    page.execute_script(
        "Plotly.relayout(document.getElementById('plot-seconds-train'), {'yaxis.autorange': true})"
    )
    assert len(ticks) >= 3 and set(ticks) <= {f"{n} s" for n in range(2, 10)}


def test_text_of_the_profile_stays_text(browser, tmp_path):
    from selenium.webdriver.common.by import By

    open_page(browser, write_report(nasty_profile(), tmp_path)["html"])
    assert said(browser, "errors") is None
    assert browser.execute_script("return window.hacked") is None
    assert int(said(browser, "plots")) == 5
    assert NASTY_LABEL in browser.find_element(By.CSS_SELECTOR, ".key button").text
    series = "return document.querySelector('.plot')._fullData[0].meta.series"
    assert browser.execute_script(series) == NASTY_LABEL


def test_plotly_knows_every_property():
    from plotly.graph_objects import Figure

    colours = {f'"@{name}"': f'"{colour}"' for name, colour in LIGHT.names().items()}
    profile = realistic_profile()
    plots = [*cost_plots(profile, "train"), *agreement_plots(profile)]
    for plot in [*plots, *parts_plots(profile, "train")]:
        text = json.dumps({"data": plot.data, "layout": plot.layout})
        for name, colour in colours.items():
            text = text.replace(name, colour)
        Figure(json.loads(text))
