"""The page of a sweep in headless Chromium: sliders, hover, clicks, keys; nothing leaves the page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from analysis import load
from figures.page import write_page
from tests.make_runs import Shape, make_runs

pytestmark = pytest.mark.browser
SWITCHES = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--window-size=1200,900",
)  # fmt: skip
HOSTILE = "<img src=x onerror=document.title=1>"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two methods, four rates, two evaluations and three subjects, one of which has a hostile name."""
    root = tmp_path_factory.mktemp("browser")
    shapes = {"lora": Shape(diverges_from=8.0), "delora": Shape(high=2.0)}  # at 8x lower than at 1x
    rates, subjects = (0.5, 1.0, 4.0, 8.0), ("cat", HOSTILE, "owl")
    make_runs(
        root / "runs",
        shapes=shapes,
        multipliers=rates,
        subjects=subjects,
        eval_steps=(5,),
        pictures=True,
        pictures_on_the_way=True,
        drift=True,
    )
    return write_page(root / "report.html", load(root / "runs"), title=HOSTILE)


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    """Chromium with a log of its console and of its requests."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for switch in SWITCHES:
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser: webdriver.Chrome, page: Path) -> webdriver.Chrome:
    """The page as a fresh visitor sees it."""
    browser.get("about:blank")
    browser.get(page.as_uri())
    WebDriverWait(browser, 20).until(lambda b: b.find_elements(By.CSS_SELECTOR, "#chart-dino .scatterlayer path"))
    return browser


def sources(browser: webdriver.Chrome) -> list[str | None]:
    """The pictures that are shown."""
    return [image.get_attribute("src") for image in browser.find_elements(By.CSS_SELECTOR, "#tiles img")]


def slide(browser: webdriver.Chrome, name: str, key: str) -> WebElement:
    """Press a key on a slider."""
    slider = browser.find_element(By.ID, name)
    slider.send_keys(key)
    return slider


def test_nothing_leaves_the_page_and_the_console_stays_empty(browser: webdriver.Chrome, page: Path) -> None:
    browser.get("about:blank")
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get(page.as_uri())
    WebDriverWait(browser, 20).until(lambda b: b.find_elements(By.CSS_SELECTOR, "#chart-dino .scatterlayer path"))
    browser.find_element(By.CSS_SELECTOR, "#files button").click()
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith(("data:", "blob:", page.as_uri()))] == []
    assert browser.get_log("browser") == []
    assert browser.title == f"{HOSTILE} · Plateau", "a name of a stranger has run"


def test_the_slider_changes_the_pictures_of_all_methods_together(opened: webdriver.Chrome) -> None:
    before = sources(opened)
    assert len(before) == 3, "the base model and two methods; these runs keep no photographs"
    slider = slide(opened, "multiplier", Keys.ARROW_RIGHT)
    assert opened.find_element(By.ID, "multiplier-said").text == "4×"
    assert slider.get_attribute("aria-valuetext") == "4 times the base rate"
    slide(opened, "multiplier", Keys.END)
    after = sources(opened)
    assert before[0] == after[0], "the base model has no rate"
    assert all(old != new for old, new in zip(before[1:], after[1:], strict=True))
    assert opened.find_elements(By.CSS_SELECTOR, "#tiles img.diverged"), "LoRA diverged at the highest rate"
    late = sources(opened)
    slide(opened, "step", Keys.HOME)
    assert opened.find_element(By.ID, "step-said").text == "5"
    assert sources(opened)[2] != late[2], "DeLoRA is on its way at step 5"


def test_what_is_chosen_survives_a_reload(opened: webdriver.Chrome) -> None:
    slide(opened, "multiplier", Keys.HOME)
    opened.refresh()
    WebDriverWait(opened, 20).until(lambda b: b.find_element(By.ID, "multiplier-said").text)
    assert opened.find_element(By.ID, "multiplier-said").text == "1/2×"


def test_hover_says_the_numbers_and_n(opened: webdriver.Chrome) -> None:
    point = opened.find_elements(By.CSS_SELECTOR, "#chart-dino .scatterlayer .points path")[1]
    ActionChains(opened).move_to_element(point).perform()
    said = WebDriverWait(opened, 10).until(
        lambda b: " ".join(text.text for text in b.find_elements(By.CSS_SELECTOR, "#chart-dino .hoverlayer text"))
    )
    assert "LoRA, 1×" in said
    assert "n = 3" in said


def test_a_click_on_a_dot_opens_the_subject(opened: webdriver.Chrome) -> None:
    chosen = Select(opened.find_element(By.ID, "one-subject"))
    first = chosen.first_selected_option.text
    for dot in opened.find_elements(By.CSS_SELECTOR, "#chart-subjects .scatterlayer .points path"):
        opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", dot)
        ActionChains(opened).move_to_element(dot).click().perform()
        if chosen.first_selected_option.text != first:
            break
    now = chosen.first_selected_option.text
    assert now != first
    assert Select(opened.find_element(By.ID, "subject")).first_selected_option.text == now


def test_a_block_opens_its_matrices_by_the_keyboard(opened: webdriver.Chrome) -> None:
    button = opened.find_elements(By.CSS_SELECTOR, "#block-charts button")[2]
    button.send_keys(Keys.ENTER)
    assert opened.find_element(By.ID, "h-matrices").text == f"{button.text} at 1×"
    names = [text.text for text in opened.find_elements(By.CSS_SELECTOR, "#chart-matrices .yaxislayer-above text")]
    assert any("attn1.to_q" in name for name in names)


def test_a_method_can_be_hidden_everywhere(opened: webdriver.Chrome) -> None:
    curves = len(opened.find_elements(By.CSS_SELECTOR, "#chart-dino .scatterlayer > g"))
    opened.find_element(By.CSS_SELECTOR, "#series input").send_keys(Keys.SPACE)
    assert len(opened.find_elements(By.CSS_SELECTOR, "#chart-dino .scatterlayer > g")) < curves
    assert len(sources(opened)) == 2


@pytest.mark.parametrize("width", [360, 800, 1400])
def test_nothing_is_wider_than_the_window(opened: webdriver.Chrome, width: int) -> None:
    opened.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    )
    try:
        WebDriverWait(opened, 10).until(lambda b: b.execute_script("return innerWidth") == width)
        WebDriverWait(opened, 10).until(
            lambda b: b.execute_script("return document.documentElement.scrollWidth") <= width
        )
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
