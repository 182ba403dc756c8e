"""The page of a comparison of modules for maps, in a real browser."""

import pytest

from sparse_tx.accounting.maps import MapShape
from sparse_tx.profiler.maps import PATTERNS, parse_map_patterns, profile_maps
from sparse_tx.profiler.report.map_files import write_map_report
from sparse_tx.profiler.report.map_plots import map_plots
from tests.browser import look
from tests.profiler.test_report_page import MISPLACED_TICKS, column, open_page, said, settle

PROFILE = profile_maps(
    (MapShape((97, 97), 512), MapShape((5, 7), 16)), parse_map_patterns(PATTERNS)
)


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):
    """The page, opened once; tests leave it as they found it."""
    open_page(browser, write_map_report(PROFILE, tmp_path_factory.mktemp("maps"))["html"])
    return browser


def test_page_renders(page):
    assert said(page, "errors") is None
    assert [entry for entry in page.get_log("browser") if entry["level"] != "INFO"] == []
    assert int(said(page, "plots")) == 4
    marks = "return [...document.querySelectorAll('.plot')].map((place) =>"
    marks += " place.querySelectorAll('.trace').length)"
    assert page.execute_script(marks) == [
        len(plot.data) for channels in (512, 16) for plot in map_plots(PROFILE, channels)
    ]


@pytest.mark.parametrize("width", [1400, 420])
def test_nothing_overlaps_or_is_cut_at_any_width(page, width):
    look(page, width)
    settle(page)
    assert page.execute_script(MISPLACED_TICKS) == []
    assert page.execute_script("return document.documentElement.scrollWidth") <= width


def test_table_is_sorted(page):
    from selenium.webdriver.common.by import By

    look(page)
    headings = page.find_elements(By.CSS_SELECTOR, "#settings th")
    at = next(n for n, heading in enumerate(headings) if "parameters" in heading.text)
    headings[at].find_element(By.TAG_NAME, "button").click()
    values = [int(text.replace(",", "")) for text in column(page, at)]
    assert values == sorted(row.cost.parameters for row in PROFILE.rows)
