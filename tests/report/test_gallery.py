"""All images of a class on a page: what it holds, and what it does in a browser."""

import base64
import io
import json
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxpoison import EntropicGW, all_distances, measure_spaces, quantised
from jaxpoison.detectors.detection import Detection
from jaxpoison.gw.pairs import debiased_distances
from jaxpoison.gw.scaling import scaled
from jaxpoison.report import gallery as module
from jaxpoison.report.gallery import gallery, shown_images
from jaxpoison.report.html import _template

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "headless_shell")
BROWSER = os.environ.get("JAXPOISON_BROWSER") or next(
    filter(None, map(shutil.which, BROWSERS)), None
)


def found(scores, called):
    return Detection(np.asarray(called).astype(int), np.asarray(scores, float), 0.0, True, {})


def made(rng, n=90, names=None):
    heatmaps = rng.random((n, 16, 16)).astype(np.float32) ** 4
    heatmaps[0] = 0
    images = rng.integers(0, 255, (n, 16, 16, 3), dtype=np.uint8)
    detections = {
        "first": found(np.arange(n), np.arange(n) >= n - 7),
        "second": found(-np.arange(n), np.arange(n) < 3),
    }
    names = [f"{k}.png" for k in range(n)] if names is None else names
    return images, heatmaps, names, detections, np.arange(n) % 2 == 0


def data_of(shown):
    return json.loads(shown.data)


def test_it_holds_what_was_found(rng):
    images, heatmaps, names, detections, poisoned = made(rng)
    shown = gallery(images, heatmaps, names, detections, poisoned, np.arange(90))
    data = data_of(shown)
    assert data["names"] == names
    assert data["detectors"]["first"]["scores"] == list(range(90))
    assert np.flatnonzero(data["detectors"]["second"]["called"]).tolist() == [0, 1, 2]
    assert data["poisoned"] == poisoned.astype(int).tolist()
    # A constant heatmap has no place of its own.
    assert data["places"][0] == [0, 0]
    assert np.ptp(np.array(data["places"]), axis=0).min() > 0
    sheet = Image.open(io.BytesIO(base64.b64decode(shown.images.split(",")[1])))
    assert sheet.size == (shown.columns * shown.side, -(-90 // shown.columns) * shown.side)
    row, column = divmod(41, shown.columns)
    tile = np.asarray(sheet.crop((16 * column, 16 * row, 16 * column + 16, 16 * row + 16)), float)
    # Compressed, but that image and no other.
    errors = [np.abs(tile - image).mean() for image in images]
    assert np.argmin(errors) == 41
    assert data_of(gallery(images, heatmaps, names, {}, None, np.arange(90)))["poisoned"] is None


def test_of_many_images_the_highest_scores_are_shown(rng, monkeypatch):
    monkeypatch.setattr(module, "_MOST", 40)
    images, heatmaps, names, detections, poisoned = made(rng)
    chosen = shown_images(90, detections)
    shown = gallery(images[chosen], heatmaps[chosen], names, detections, poisoned, chosen)
    data = data_of(shown)
    assert len(data["names"]) == shown.shown == 40
    assert shown.of == 90
    # Ten of each detector.
    assert {f"{k}.png" for k in (*range(10), *range(80, 90))} <= set(data["names"])


def test_a_page_of_many_images_is_light(rng, monkeypatch):
    n = 2500
    # As smooth as photographs are.
    images = np.cumsum(rng.integers(-9, 10, (n, 32, 32, 3)), 2).clip(-120, 120) + 125
    heatmaps = np.exp(-rng.random((n, 32, 32)) * 9).astype(np.float32)
    detections = {name: found(rng.normal(size=n), rng.random(n) < 0.1) for name in "abcdefghij"}
    monkeypatch.setattr(module, "places", lambda heatmaps: rng.normal(size=(len(heatmaps), 2)))
    names = [f"train/0000{k % 43}/0000{k}_000{k % 30}.png" for k in range(n)]
    poisoned, chosen = rng.random(n) < 0.1, shown_images(n, detections)
    shown = gallery(images.astype(np.uint8), heatmaps, names, detections, poisoned, chosen)
    assert len(shown.data) + len(shown.images) + len(shown.heatmaps) < 4.5e6


def test_far_heatmaps_lie_far_apart_on_the_map(heatmaps):
    """Distances in the plane order as those that they stand for; landmarks change little."""
    small = quantised(measure_spaces(heatmaps), 6)
    solver = EntropicGW(0.01)
    expected = np.sqrt(debiased_distances(small, solver))
    upper = np.triu_indices(len(small), 1)
    for landmarks in (len(small), 12):
        points = scaled(small, solver, landmarks=landmarks)
        apart = np.linalg.norm(points[:, None] - points[None], axis=-1)
        assert np.corrcoef(apart[upper], expected[upper])[0, 1] > 0.7
    # In as many dimensions as there are landmarks, distances are what they were, but rounding
    # and what no Euclidean space can hold.
    points = scaled(small, solver, dimensions=len(small) - 1, landmarks=len(small))
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1)
    assert np.corrcoef(apart[upper], expected[upper])[0, 1] > 0.95
    assert all_distances(small.take(np.arange(2)), solver).shape == (2, 2)


def test_alike_heatmaps_lie_on_one_point(heatmaps):
    same = quantised(measure_spaces(np.repeat(heatmaps[:1], 5, 0)), 4)
    assert np.abs(scaled(same, EntropicGW(0.01))).max() < 1e-2
    with pytest.raises(ValueError, match="at least two spaces to place, found 1"):
        scaled(same.take(np.arange(1)))


@pytest.fixture
def browser():
    """Chromium, driven by Playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install '.[browser]'")
    if BROWSER is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed; JAXPOISON_BROWSER names another")
    with playwright.sync_playwright() as driver:
        options = ["--no-sandbox", "--single-process", "--no-zygote", "--in-process-gpu"]
        opened = driver.chromium.launch(executable_path=BROWSER, args=options)
        yield opened
        opened.close()


def test_a_browser_sorts_filters_and_points(rng, tmp_path, browser):
    names = [f"{k}.png" for k in range(90)]
    names[3] = "</script><b>3.png"
    shown = gallery(*made(rng, names=names), np.arange(90))
    # Any page holds a gallery alike.
    text = _template("class.html.jinja").environment.from_string(PAGE).render(shown=shown)
    (tmp_path / "page.html").write_text(text)
    page, complaints = browser.new_page(), []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.extend(re.findall("^https?:.*", request.url)))
    page.goto((tmp_path / "page.html").as_uri())

    def state():
        cards = page.locator(".card")
        return (
            page.locator("output").inner_text(),
            page.locator("circle:not(.hidden)").count(),
            page.locator("circle.called:not(.hidden)").count(),
            cards.count(),
            cards.first.locator(".name").inner_text(),
        )

    def choose(name, value):
        page.locator(f"select[name={name}]").select_option(value)

    # The last detector's scores fall with the number, and it calls 0, 1 and 2.
    assert state() == ("90 of 90 images", 90, 3, 60, "0.png")
    choose("show", "called")
    assert state() == ("3 of 90 images", 3, 3, 3, "0.png")
    # Every second image is poisoned.
    choose("show", "missed")
    assert state() == ("43 of 90 images", 43, 0, 43, "4.png")
    choose("show", "false")
    assert state() == ("1 of 90 images", 1, 1, 1, "1.png")
    choose("show", "all")
    choose("detector", "first")
    assert state() == ("90 of 90 images", 90, 7, 60, "89.png")
    choose("order", "up")
    assert state()[-1] == "0.png"
    choose("order", "name")
    assert state()[-1] == "</script><b>3.png"
    page.locator("input[name=holds]").fill("7.PNG")
    assert state()[0] == "9 of 90 images"
    page.locator("input[name=holds]").fill("")
    choose("order", "down")
    # By keyboard: on to the next image, whose dot is ringed.
    page.locator(".card").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.k") == "88"
    assert page.locator("circle.here").get_attribute("data-k") == "88"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.dataset.k") == "87"
    # By pointer: what a dot stands for, and where it is in the gallery.
    page.locator('circle[data-k="5"]').dispatch_event("pointerover")
    assert page.locator(".tip").inner_text().startswith("5.png")
    assert "clean" in page.locator(".tip").inner_text()
    page.locator('circle[data-k="5"]').dispatch_event("click")
    assert page.evaluate("document.activeElement.dataset.k") == "5"
    # All that lie before it are listed by then, and the rest by the button.
    assert state()[3] == 85
    page.locator(".more").click()
    assert state()[3] == 90
    assert not page.locator(".more").is_visible()
    page.emulate_media(media="print")
    assert not page.locator(".gallery form").is_visible()
    assert complaints == []


PAGE = """{% extends "page.html.jinja" %}{% from "gallery.html.jinja" import look_at %}
{% block body %}{{ look_at(shown, 0) }}{% endblock %}"""
