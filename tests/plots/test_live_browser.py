"""The live page in a real browser, while a real training process writes, and after it was killed."""

import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[2]


@pytest.fixture
def training(tmp_path):
    """A training process with a live page beside it, and the page's address."""
    flags = "--preset tiny --num_steps 1000000 --eigen_interval 25 --checkpoint_interval 500000 --causal never --quiet"
    command = [sys.executable, "train.py", *flags.split(), "--n_threads", "1", "--live", "--port", "0"]
    with subprocess.Popen(
        [*command, "--runs_dir", str(tmp_path), "--run_name", "run"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        line = process.stdout.readline()
        yield process, re.search(r"http://127\.0\.0\.1:\d+/", line)[0]
        process.kill()


@pytest.fixture
def served():
    """Serve a run folder from a thread and return the page's address."""
    from werkzeug.serving import make_server

    from spectral.plots.live import RunWatch, listen, make_app

    servers = []

    def start(folder):
        with listen("127.0.0.1", 0) as listening:
            app = make_app(RunWatch(folder), refresh_seconds=0.3)
            server = make_server(
                "127.0.0.1", listening.getsockname()[1], app.server, threaded=True, fd=listening.fileno()
            )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_the_live_page_follows_a_training_until_it_dies(training, open_page, keep_screenshot):
    process, address = training
    page = open_page(address, wait=None)
    page.wait_for_function("spectralPage.state().steps >= 2")
    first = page.evaluate("spectralPage.state()")
    assert page.inner_text("#status") == "running"
    page.locator("#view-loss").scroll_into_view_if_needed()
    last = "Math.max(...document.querySelector('#view-loss .plot')._fullData[0].x)"
    page.wait_for_function("document.querySelector('#view-loss .plot')._fullData")
    drawn = page.evaluate(last)
    page.wait_for_function(f"spectralPage.state().steps > {first['steps']} && {last} > {drawn}")  # new points on curves
    assert page.evaluate("spectralPage.state().step") > first["step"]  # the slider stays at the newest snapshot
    keep_screenshot(page, "live_running")
    process.kill()
    page.wait_for_function("document.getElementById('status').textContent === 'died'")
    page.wait_for_function(
        "document.getElementById('summary').textContent.includes('process that wrote this run died')"
    )


def test_the_live_page_waits_for_results_and_then_shows_the_report(
    tmp_path, synthetic, served, open_page, keep_screenshot
):
    whole = synthetic.make(tmp_path / "whole", steps=range(0, 1001, 50), verdict=synthetic.verdict())
    folder = tmp_path / "<b>run"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    page = open_page(served(folder), wait=None)
    page.wait_for_function("document.getElementById('status').textContent.startsWith('waiting')")
    assert page.inner_text("#name") == "<b>run"
    assert page.locator("#bar").is_hidden()
    for name in ("transitions.json", "config.json", "results.h5"):
        (whole / name).rename(folder / name)
    page.wait_for_function("document.getElementById('status').textContent === 'finished'")
    page.wait_for_selector("body[data-drawn=all]")
    assert page.evaluate("spectralPage.state()") == {"step": 500, "steps": 21}
    assert "An abrupt transition at step 500" in page.inner_text("#summary")
    page.locator("#slider").focus()
    page.keyboard.press("End")
    page.wait_for_function("document.getElementById('step').textContent === '1,000'")
    keep_screenshot(page, "live_finished")
