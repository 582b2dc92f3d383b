"""The page for people: its HTTP by hand, and the whole of it in a real browser."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.serving.fake_server import FakePolicy
from tests.serving.served import Served, picture, served
from vla_jax.corpus.pictures import PictureBank
from vla_jax.envs.tabletop.config import CONFIGS
from vla_jax.envs.tabletop.layout import Block, Layout, Mat, draw_layout
from vla_jax.serving.access import Access
from vla_jax.serving.page.demo import normalized, scene_tasks
from vla_jax.serving.page.routes import MAX_READERS
from vla_jax.serving.server import make_app
from vla_jax.serving.service import Service
from vla_jax.serving.settings import ServerSettings

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(limits={"position_x": {"high": 0.005}}, max_requests_per_s=1e6) as running:
        yield running


@contextmanager
def reading(server: Served, headers: dict[str, str] | None = None) -> Iterator[Callable[[], Any]]:
    """The next message of /page/events."""
    url = f"http://127.0.0.1:{server.port}/page/events"
    request = urllib.request.Request(url, headers=headers or {})
    with urllib.request.urlopen(request, timeout=30) as response:
        yield lambda: json.loads(response.readline())


def until(read: Callable[[], Any], kind: str, wanted: Callable[[Any], bool] = bool) -> Any:
    for _ in range(1000):
        message = read().get(kind)
        if message is not None and wanted(message):
            return message
    raise AssertionError(f"no such {kind}")


def act(server: Served, session: str, front: int = 10, wrist: int = 20, words: str = "go") -> Any:
    images = {"front": picture(front).tolist(), "wrist": picture(wrist).tolist()}
    return server.post("/act", {"images": images, "instruction": words, "session": session})[1]


def pixels(data: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        return np.asarray(image.convert("RGB"))


# ---- HTTP


def test_readers_see_what_each_robot_asked_last_and_was_told(server):
    told = act(server, "arm 1", 60, 70, "<b>lift</b> it")
    act(server, "arm 2", 1, 2, "close it")
    act(server, "arm 2", 3, 4, "nan")
    with reading(server) as read:
        first = read()["server"]
        assert first["not_ready"] == "" and {"arm 1", "arm 2"} <= set(first["robots"])
        one = until(read, "robot", lambda r: r["name"] == "arm 1")
        assert one["instruction"] == "<b>lift</b> it" and one["protocol"] == "rest"
        np.testing.assert_array_equal(pixels(one["pictures"]["front"]), picture(60))
        np.testing.assert_array_equal(pixels(one["pictures"]["wrist"]), picture(70))
        assert one["actions"] == [pytest.approx(told["action"], abs=1e-6)]
        assert one["actions"][0][1] == pytest.approx(0.005) and one["clipped"] == ["bounds"]
        assert one["tokens"] == list(range(32)) and one["plan"] == "plan: <b>lift</b>"
        assert 0 <= one["model_ms"] + one["queue_ms"] <= one["total_ms"]
        two = until(read, "robot", lambda r: r["name"] == "arm 2")
        assert (two["valid"], two["reason"]) == (False, "nan") and "NaN" in two["why"]
        np.testing.assert_array_equal(pixels(two["pictures"]["front"]), picture(3))
        # Later ones come by themselves; a robot that goes is no longer named.
        act(server, "arm 1", 90)
        again = until(read, "robot", lambda r: r["name"] == "arm 1")
        assert pixels(again["pictures"]["front"])[0, 0, 0] == 90
        server.post("/reset", {"session": "arm 1"})
        assert "arm 1" not in until(read, "server", lambda s: "arm 1" not in s["robots"])["robots"]


def test_a_hold_without_pictures_shows_none(server):
    reply = server.post("/act", {"instruction": "go", "session": "blind"})[1]
    assert reply["reason"] == "camera"
    with reading(server) as read:
        blind = until(read, "robot", lambda r: r["name"] == "blind")
        assert blind["pictures"] == {} and blind["instruction"] == "go"
        assert blind["why"] == reply["why"]


def test_what_is_served_and_its_limits(server):
    info = json.loads(server.get("/page/info")[1])
    assert info["bundle"] == "f00d" and info["cameras"] == ["front", "wrist"] and not info["demo"]
    place = [d["name"] for d in info["action_spec"]["dimensions"]].index("position_x")
    assert info["low"][place] == pytest.approx(-0.05) and info["high"][place] == pytest.approx(
        0.005
    )
    assert info["limits"]["position_x"]["high"] == 0.005


def test_a_browser_that_does_not_read_costs_robots_nothing(server):
    with reading(server):  # and never does
        for number in range(300):
            assert act(server, "busy", number % 256)["valid"]
        with reading(server) as read:
            newest = until(read, "robot", lambda r: r["name"] == "busy")
            assert pixels(newest["pictures"]["front"])[0, 0, 0] == 299 % 256


def test_readers_are_bounded_and_make_room_when_they_go(server):
    url = f"http://127.0.0.1:{server.port}/page/events"
    readers = [urllib.request.urlopen(url, timeout=30) for _ in range(MAX_READERS)]
    assert server.get("/page/events")[0] == 503
    for reader in readers:
        reader.close()
    for _ in range(200):  # they are missed at the next line
        try:
            with reading(server) as read:
                assert read()["server"]["not_ready"] == ""
            return
        except urllib.error.HTTPError as e:
            e.close()
            time.sleep(0.1)
    raise AssertionError("readers that went still count")


def test_the_page_needs_no_token_and_everything_it_shows_does(tmp_path):
    path = tmp_path / "token.txt"
    path.write_text("s3cret")
    with served(token_file=str(path)) as server:
        for asset in ("/", "/page/page.css", "/page/page.js"):
            assert server.get(asset)[0] == 200, asset
        for closed in ("/page/info", "/page/events", "/page/page.html", "/page/demo.py"):
            assert server.get(closed)[0] == 401, closed
        # Not openpi's protocol, which shares the address.
        with pytest.raises(InvalidStatus, match="401"):
            connect(f"ws://127.0.0.1:{server.port}/")
        assert server.post("/page/demo/go", {})[0] == 401
        with reading(server, {"Authorization": "Bearer s3cret"}) as read:
            assert "server" in read()


def test_nothing_of_the_page_comes_from_elsewhere_or_runs_inline(server):
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/", timeout=30) as answer:
        policy = answer.headers["Content-Security-Policy"]
        page = answer.read().decode()
    assert "default-src 'none'" in policy and "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert 'style="' not in page and page.count("<script") == page.count("<script src=") == 1
    for asset in (page, server.get("/page/page.js")[1], server.get("/page/page.css")[1]):
        assert "http://" not in asset and "https://" not in asset
        assert "innerHTML" not in asset
    # Without the demo, there is none.
    request = urllib.request.Request(server._url("/page/demo/go"), b"{}", JSON)
    with pytest.raises(urllib.error.HTTPError, match="404") as error:
        urllib.request.urlopen(request, timeout=30)
    error.value.close()


# ---- the demo


def test_a_policy_of_another_robot_gets_no_demo():
    async def started() -> None:
        settings = ServerSettings(demo=True)
        make_app(Service(FakePolicy(), settings), Access(settings))

    with pytest.raises(ValueError, match="the demo's table-top world") as error:
        asyncio.run(started())
    assert "fake_arm" in str(error.value)


def test_tasks_are_those_that_the_table_allows():
    # The left block cannot go further left, and to the right is the other.
    layout = Layout((Block("dog", -0.14, 0.0), Block("cat", 0.03, 0.0)), (Mat("red", 0.1, 0.1),))
    words = {t.instruction for t in scene_tasks(layout, CONFIGS["full"])}
    assert {"pick the dog", "lift the cat", "put the dog on the red mat"} <= words
    assert "move the dog near the cat" in words and "slide the cat to the right" in words
    assert "push the dog to the left" not in words and "move the cat near the cat" not in words
    assert "put the dog on the blue mat" not in words
    # A block that stands in the way of a push makes it unfair, see `is_fair`.
    assert "push the dog to the right" not in words and "push the dog to the back" in words


def test_words_are_recognised_whatever_their_capitals_and_full_stops():
    assert normalized("  Pick   the Dog. ") == "pick the dog" == normalized("pick the dog!")
    assert normalized("pick the dogs") != "pick the dog"


# ---- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium with its chromedriver: run tools/setup_browser.sh, which says why")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{word}")
    options.add_argument("--window-size=1280,800")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


class Page:
    """What a person does and sees."""

    def __init__(self, browser: webdriver.Chrome, server: Served):
        self._browser = browser
        browser.get(f"http://127.0.0.1:{server.port}/")

    def __getitem__(self, place: str):
        return self._browser.find_element(By.ID, place)

    def text(self, place: str) -> str:
        return self[place].text

    def wait(self, true: Callable[[], Any]) -> Any:
        for _ in range(1200):
            if found := true():
                return found
            time.sleep(0.05)
        self._browser.save_screenshot("/tmp/page_test_failed.png")
        raise AssertionError(f"the page never came to it: {self.text('main')!r}")

    def type(self, place: str, words: str) -> None:
        self[place].clear()
        self[place].send_keys(words)


def test_type_an_instruction_and_see_the_robot_move_and_succeed(browser, tmp_path):
    path = tmp_path / "token.txt"
    path.write_text("s3cret")
    bank, world = PictureBank(), CONFIGS["demo"]
    layout = draw_layout(random.Random(0), world, bank, bank.concepts("robot"))
    block = layout.blocks[0].name
    with served(program="page_server.py", token_file=str(path), wait=True) as server:
        page = Page(browser, server)
        page.wait(lambda: page["login"].is_displayed())
        page.type("token", "wrong\n")
        page.wait(lambda: page.text("login-error") == "That is not the token.")
        page.type("token", "s3cret\n")
        page.wait(lambda: page.text("ready") == "ready")
        page.wait(lambda: page["view"].is_displayed())
        assert f"pick the {block}" in page.text("examples").split("\n")

        # Success, told by the simulator; not the phrasing of the example.
        frames = [page["view"].get_attribute("src")]
        page.type("instruction", f"Grab the {block}")
        page["go"].click()

        def ended() -> str:
            view = page["view"].get_attribute("src")
            if view != frames[-1]:
                frames.append(view)
            return page["outcome"].get_attribute("class") == "success"

        page.wait(ended)
        assert len(set(frames)) >= 4
        assert "by the simulator's own test" in page.text("outcome")
        assert page.text("told") == f"Grab the {block}"
        values = [v.text.split()[0] for v in page["bars"].find_elements(By.CLASS_NAME, "value")]
        assert values[-1] == "1.000" and page.text("verdict") == "valid"  # the gripper is closed
        assert page.text("tokens") == "0 1 2 3 4 5 6 7"
        # Of a policy that is given the words as they are; what it says is shown as text.
        assert page.text("plan") == f"<i>plan</i>: Grab the {block}"

        # A question is about the picture that is shown.
        shown = page["cameras"].find_element(By.TAG_NAME, "img").get_attribute("src")
        page.type("question", "<u>what?</u>\n")
        total = int(pixels(shown.partition("base64,")[2]).sum())
        answer = f"<u>what?</u> {total} <b><u>what?</u></b>"
        page.wait(lambda: page.text("answer") == answer)

        # What the robot must not do is not done, and the page says why; words that are no task.
        page.type("instruction", "nan")
        page["go"].click()
        page.wait(lambda: page.text("verdict") == "hold")
        assert "Holds its position (nan): the policy's action is NaN" in page.text("why")
        assert not page["go"].is_enabled()
        page["stop"].click()
        page.wait(lambda: page["outcome"].get_attribute("class") == "stopped")
        assert page["go"].is_enabled()
        old = page["view"].get_attribute("src")
        page["new-scene"].click()
        page.wait(lambda: page.text("outcome") == "A new table.")
        assert page["view"].get_attribute("src") != old
        assert page["seed"].get_attribute("value") != "0"
        assert server.stop() == 0
        page.wait(lambda: page.text("ready") == "not connected")
    # The wrong token, and the server that has gone.
    expected = ("401", "ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING")
    strange = [
        entry["message"]
        for entry in browser.get_log("browser")
        if not any(word in entry["message"] for word in expected)
    ]
    assert not strange


def test_robots_are_watched_where_there_is_no_demo(browser, server):
    page = Page(browser, server)
    page.wait(lambda: page.text("ready") == "ready")
    act(server, "<img src=x onerror=alert(1)>", 11, words="lift it")
    page.wait(lambda: "<img src=x onerror=alert(1)>" in page.text("robots"))
    assert not page["view"].is_displayed() and not page["demo"].is_displayed()
    buttons = page["robots"].find_elements(By.TAG_NAME, "button")
    next(b for b in buttons if "onerror" in b.text).click()
    page.wait(lambda: page.text("told") == "lift it")
    cameras = [f.text for f in page["cameras"].find_elements(By.TAG_NAME, "figcaption")]
    assert cameras == ["front", "wrist"]
    page["camera"].find_elements(By.TAG_NAME, "option")[1].click()
    page.type("question", "what?\n")
    page.wait(lambda: page.text("answer") == f"what? what? 8x8 {int(picture(20).sum())}")
