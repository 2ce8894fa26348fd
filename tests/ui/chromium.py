"""Headless Chromium for the tests of the page, and what it shows."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import ActionChains
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

PATIENCE = 60.0  # seconds after which something does not come any more
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)

_CHART = 'getElement(Number(document.querySelector(".v-chart")?.id.slice(1)))?.chart'


def start_chromium(profile: Path, *flags: str, size: tuple[int, int] = (1280, 800)) -> webdriver.Chrome:
    """A browser with a new profile. AssertionError when Chromium is not installed: the page must be tested."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    assert browser, "Chromium is not installed; Debian has it as: apt-get install chromium"
    assert driver, "chromedriver is not installed; Debian has it as: apt-get install chromium-driver"
    options = Options()
    options.binary_location = browser
    for flag in (*FLAGS, *flags, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service(driver))


class Tab:
    """The page in the browser's current tab, in the words of a user."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        self.driver.get(url)

    def all(self, selector: str) -> list[WebElement]:
        """The visible elements of a CSS selector."""
        return [
            element
            for element in self.driver.find_elements(By.CSS_SELECTOR, selector)
            if element.is_displayed()
        ]

    def one(self, selector: str, text: str = "") -> WebElement:
        """The first visible element of a CSS selector whose text contains `text`; waits for it."""

        def found() -> WebElement | None:
            return next((e for e in self.all(selector) if text in e.text), None)

        element: WebElement = self.until(found, f"{selector} with {text!r}")
        return element

    def text(self, selector: str) -> str:
        """The text of the first visible element, "" when there is none."""

        def read() -> list[str]:
            return [element.text for element in self.all(selector)[:1]] or [""]

        return str(self.until(read, selector)[0])

    def texts(self, selector: str) -> list[str]:
        return list(self.until(lambda: [[e.text for e in self.all(selector)]], selector)[0])

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait until a condition is true and return it; elements that are replaced meanwhile are looked for again."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                if value := condition():
                    return value
            except StaleElementReferenceException as error:
                last: Exception | None = error
            else:
                last = None
            if time.monotonic() > deadline:
                body = self.driver.find_element(By.TAG_NAME, "body").text
                raise AssertionError(f"{what} did not come; the page says: {body}") from last
            time.sleep(0.05)

    def click(self, selector: str, text: str = "") -> None:
        """Click an element, which may be replaced while we look at it."""

        def clicked() -> bool:
            element = self.one(selector, text)
            self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
            element.click()
            return True

        self.until(clicked, f"a click on {selector} {text!r}")

    def write(self, selector: str, text: str) -> None:
        """Put text in the place of what an input has."""
        element = self.one(selector)
        element.send_keys(Keys.CONTROL, "a")
        element.send_keys(text)

    def ask(self, question: str, *, enter: bool = False) -> None:
        """Ask and wait for the end of the answer."""
        self.one(".v-drawn")  # the graph is there, and the question that is suggested
        before = self.num_ended
        self.write(".v-question textarea", question)
        if enter:
            self.one(".v-question textarea").send_keys(Keys.ENTER)
        else:
            self.click(".v-ask")
        self.wait_ended(before)

    @property
    def num_ended(self) -> int:
        """Questions that this page has answered, or refused."""
        found = self.driver.find_element(By.CSS_SELECTOR, ".v-details").get_attribute("data-ended")
        return int(found or 0)

    def wait_ended(self, before: int) -> None:
        """Until one more question has an answer, or an error, than `before`."""
        self.until(lambda: self.num_ended > before and self.text(".v-state") == "", "an answer")

    @property
    def answer(self) -> str:
        """The answer's text, or the names that stand in its place."""
        return self.text(".v-answer") or ", ".join(self.texts(".v-chip"))

    @property
    def errors(self) -> str:
        return " ".join(self.texts(".v-error"))

    def value(self, selector: str) -> str:
        """What an input has."""
        return str(self.one(selector).get_property("value"))

    def tokens(self) -> tuple[int, int, int]:
        """The graph's tokens: all that were read, those that had been computed before, and those that had not."""
        took = " ".join(self.texts(".v-took"))
        found = re.search(r"edges?: ([\d,]+) tokens, .* computed, ([\d,]+) computed now", took)
        assert found, took
        read, computed = (int(number.replace(",", "")) for number in found.groups())
        return read, read - computed, computed

    def choose(self, selector: str, option: str) -> None:
        """Choose in a list that folds out."""
        self.click(selector)
        self.click(".q-menu .q-item", option)
        self.until(lambda: not self.all(".q-menu"), "the end of the list")

    def choose_node(self, name: str) -> None:
        """Choose a node in the list below the drawing."""
        if not self.all(".v-node"):
            self.click(".v-all .q-item", "Nodes")
        self.click(".v-node", name)

    def drawing(self) -> dict[str, Any]:
        """What the chart draws, as the chart itself has it."""
        script = f"return JSON.stringify({_CHART}?.getOption()?.series?.[0] ?? null)"
        read = self.until(lambda: json.loads(self.driver.execute_script(script)), "a drawing")
        series: dict[str, Any] = read
        return series

    def scale(self) -> tuple[float, float]:
        """Pixels of the drawing, across and down, for a pixel of its layout."""
        at = f"{_CHART}.convertToPixel({{seriesIndex: 0}}, "
        (x0, y0), (x1, y1) = self.driver.execute_script(f"return [{at}[0, 0]), {at}[100, 100])]")
        return (x1 - x0) / 100, (y1 - y0) / 100

    def hover_in_drawing(self, node: str) -> None:
        """Move the mouse over a node."""
        self._to(node).perform()

    def click_in_drawing(self, node: str) -> None:
        """Click a node."""
        self._to(node).click().perform()

    def _to(self, node: str) -> ActionChains:
        data = self.drawing()["data"]
        at = next([item["x"], item["y"]] for item in data if item.get("node") == node)
        x, y = self.driver.execute_script(f"return {_CHART}.convertToPixel({{seriesIndex: 0}}, {at})")
        chart = self.one(".v-chart")
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", chart)
        size = chart.size
        offset = round(x - size["width"] / 2), round(y - size["height"] / 2)
        return ActionChains(self.driver, duration=50).move_to_element_with_offset(chart, *offset)

    def size(self, width: int, height: int) -> None:
        """Make the window this large, to the pixel."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def dark(self, dark: bool) -> None:
        """What the system prefers."""
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def console_errors(self) -> list[str]:
        """What the browser complains about."""
        log = self.driver.get_log("browser")
        return [entry["message"] for entry in log if entry["level"] == "SEVERE"]
