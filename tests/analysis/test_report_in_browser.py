"""A report as Chromium shows it: on a phone, on a wide window and on paper."""

import base64

import numpy as np
import pytest
from server.chromium import BINARY, Chromium
from synthetic_run import scored_rows, write_run


@pytest.mark.skipif(BINARY is None, reason="there is no Chromium")
def test_a_report_fits_a_phone_and_asks_for_nothing(tmp_path, report):
    draw = np.random.default_rng(0)
    group = ["plain text", "x" * 90, "a b " * 40] * 40
    rows = scored_rows(draw.random(120).tolist(), group=group, prompt="word " * 60 + "y" * 300)
    run = write_run(tmp_path / "run", rows, command="tuco " + "z" * 500)
    written = report(run, drawn=True)
    browser = Chromium(tmp_path / "profile")
    try:
        browser.events.clear()
        browser.open(written.out.as_uri())
        for width in (320, 390, 1200):
            browser.look(width, 800)
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
        columns = "getComputedStyle(document.querySelector('.figures')).gridTemplateColumns.split(' ').length"
        assert browser.evaluate(columns) == 1
        assert browser.evaluate("[...document.querySelectorAll('svg')].every((s) => s.clientHeight > 50)")
        pdf = browser.call("Page.printToPDF")["data"]
        assert base64.b64decode(pdf).startswith(b"%PDF")
        asked = {
            event["params"]["request"]["url"]
            for event in browser.events
            if event["method"] == "Network.requestWillBeSent"
        }
        assert asked <= {written.out.as_uri()}
        assert not [event for event in browser.events if event["method"] in ("Log.entryAdded",)]
    finally:
        browser.close()
