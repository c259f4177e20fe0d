"""The report in a real browser: drawn, silent, harmless, readable on a phone, and alive."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from surefoot.track.folder import RunFolder
from surefoot.track.picture import Bars, Grid, Picture, Table
from surefoot.track.record import Record
from surefoot.track.report import refresh

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
pytestmark = pytest.mark.skipif(not BROWSER, reason="no Chromium on this machine")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-extensions", "--disable-default-apps", "--hide-scrollbars",
    "--remote-debugging-pipe",
)  # fmt: skip
HARM = "</script><script>window.harmed=1</script><img src=x onerror='window.harmed=2'>\u2028--><!--"
TILE = "document.querySelector('.tile b').textContent"


class Browser:
    """Chromium by its debugging protocol over a pipe: messages end with a zero byte."""

    def __init__(self, profile: Path) -> None:
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()

        def connect() -> None:  # in the child: the protocol's descriptors are 3 and 4
            spare = [os.dup(theirs_in), os.dup(theirs_out)]
            os.dup2(spare[0], 3)
            os.dup2(spare[1], 4)

        self.child = subprocess.Popen(
            [BROWSER, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
            preexec_fn=connect, close_fds=False, start_new_session=True,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self.read, self.write = ours_in, ours_out
        self.rest, self.count, self.session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        (target,) = (t for t in self.ask("Target.getTargets")["targetInfos"] if t["type"] == "page")
        found = self.ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self.session = found["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its answer; what happens meanwhile goes to `events`."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.message()
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self.events.append(answer)

    def message(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.read], [], [], 600)
            assert ready, "the browser says nothing"
            block = os.read(self.read, 1 << 20)
            assert block, "the browser is gone"
            self.rest += block
        head, _, self.rest = self.rest.partition(b"\0")
        return dict(json.loads(head))

    def value(self, code: str) -> Any:
        """Return what JavaScript `code` gives; promises are waited for."""
        found = self.ask("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, code: str) -> None:
        """Wait until JavaScript `code` is true."""
        self.value(
            "new Promise((good, bad) => { let n = 0; const look = () => "
            f"({code}) ? good() : ++n > 20000 ? bad(Error('never')) : setTimeout(look, 25);"
            " look(); })"
        )

    def open(self, path: Path, width: int = 1200, theme: str = "light") -> None:
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=900, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        features = [{"name": "prefers-color-scheme", "value": theme}]
        self.ask("Emulation.setEmulatedMedia", features=features)
        self.events.clear()
        self.ask("Page.navigate", url=path.as_uri())
        self.until("document.readyState === 'complete' && document.querySelector('canvas')")

    def complaints(self) -> list[Any]:
        """Return errors and warnings of the console so far."""
        self.value("1")
        bad = ("Runtime.exceptionThrown", "Log.entryAdded")
        found = [e["params"] for e in self.events if e.get("method") in bad]
        calls = [e["params"] for e in self.events if e.get("method") == "Runtime.consoleAPICalled"]
        return found + [call for call in calls if call["type"] in ("error", "warning", "assert")]

    def requests(self) -> list[str]:
        sent = [e for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self.write, b'{"id":0,"method":"Browser.close"}\0')
        try:
            self.child.wait(10)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        os.close(self.read)
        os.close(self.write)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    made = Browser(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


def pictures(step: int) -> list[Picture]:
    names = [HARM, *(str(place) for place in range(1, 31))]
    values = [[float(step * (i == j)) for j in range(31)] for i in range(31)]
    return [
        Bars("few", names[:3], [step, None, 1], "%"),
        Bars("many", names, list(range(31)), note=HARM),
        Grid("map", names, names, values, down="row", across="column"),
        Table("kept", ["text", "colour"], [[HARM, "#ff8800"], [None, 0.25]]),
    ]


def write(run: RunFolder, steps: int, segment: int = 0, first: int = 0) -> None:
    with Record(run.path, segment, first) as record:
        for step in range(first + 1, steps + 1):
            record.row("train", step, loss=4 / step + 1, lr=1e-3, grad_norm=1.5, tokens_per_s=1e5)
            if step % 50 == 0:
                record.row("eval", step, val_loss=4 / step + 1.1, top1=0.4, top5=0.8)
                text = f"thou art step {step} of all" + (HARM if step > 100 else "")
                record.sample(step, "main", "ROMEO:", text)
                record.note(f"at {step}: {HARM}", "warning" if step == 100 else "info")
                spent = {"compute_s": 2.0, "data_s": 0.5, "memory_bytes": 3e8 + 1e6 * step}
                record.row("system", step, steps=50, **spent)
                for picture in pictures(step):
                    for learner in ("main", HARM):
                        record.picture(step, learner, picture.title, picture)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    segments = [{"step": 0}, {"step": 150, "after": "running"}]
    meta = {"max_steps": 300, "segments": segments, "data": {"name": HARM, "licence": HARM}}
    config = f'train:\n  seed: 1  # flag --seed\nmodel:\n  d_model: "{HARM}"  # run.yaml:3:5\n'
    made = RunFolder.create(tmp_path, "charlm", None, {"config.yaml": config}, meta)
    write(made, 300)
    made.update(status="done", step=300, errors=[{"step": 150, "error": HARM}])
    return made


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_it_draws_says_nothing_and_asks_for_nothing(
    run: RunFolder, browser: Browser, theme: str, width: int
) -> None:
    page = refresh(run.path, pictures=False)
    browser.open(page, width, theme)
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]
    inked = (
        "[...document.querySelectorAll('canvas')].map(c => { const d = c.getContext('2d')"
        ".getImageData(0, 0, c.width, c.height).data; let n = 0;"
        " for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n; })"
    )
    drawn = browser.value(inked)
    assert len(drawn) == 11 and min(drawn) > 1000  # seven curves, and pictures of two learners
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.value(overflow) == 0
    background = browser.value("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(15, 19, 24)") is (theme == "dark")


def test_no_text_becomes_markup(run: RunFolder, browser: Browser) -> None:
    browser.open(refresh(run.path, pictures=False))
    assert browser.value("window.harmed") is None
    assert browser.value("document.querySelectorAll('main img, body script').length") == 3
    said = browser.value("document.querySelector('#text').textContent")
    assert said.startswith("ROMEO:thou art step 300 of all</script><script>window.harmed")
    everything = browser.value("document.querySelector('main').textContent")
    assert everything.count("window.harmed=1") >= 5
    assert browser.complaints() == []


def test_samples_slide_and_changes_are_marked(run: RunFolder, browser: Browser) -> None:
    browser.open(refresh(run.path, pictures=False))
    marked = "[...document.querySelectorAll('#text mark')].map(m => m.textContent)"
    assert browser.value(marked) == ["300"]
    browser.value("document.querySelector('#back').click()")
    assert browser.value("document.querySelector('#when').textContent") == "step 250"
    assert browser.value(marked) == ["250"]
    browser.value("document.querySelector('#changes').click()")
    assert browser.value(marked) == []
    slide = "const s = document.querySelector('#slider'); s.value = 0; s.oninput({target: s})"
    browser.value(f"{{ {slide} }}")
    assert browser.value("document.querySelector('#when').textContent") == "step 50"
    assert browser.value("document.querySelector('#back').disabled") is True


def test_pictures_slide_and_tell_values(run: RunFolder, browser: Browser) -> None:
    browser.open(refresh(run.path, pictures=False))
    told = (
        "[...document.querySelectorAll('.picture')].map(c => c.querySelector('output').textContent)"
    )
    assert browser.value(told) == ["step 300"] * 4
    first = "document.querySelector('.picture')"
    slide = f"const s = {first}.querySelector('input'); s.value = 1; s.oninput()"
    browser.value(f"{{ {slide} }}")
    assert browser.value(told)[0] == "step 100"
    assert (
        browser.value(f"{first}.querySelector('.bars span:nth-child(3)').textContent") == "100.0 %"
    )
    assert browser.value("document.querySelector('.swatch').style.background") == "rgb(255, 136, 0)"
    grid = "document.querySelectorAll('.picture')[2].querySelector('canvas')"
    place = f"(r => [r.left + 119, r.top + 22])({grid}.getBoundingClientRect())"
    browser.value(f"{grid}.scrollIntoView()")
    x, y = browser.value(place)
    browser.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    said = "document.querySelectorAll('.picture')[2].querySelector('.told').textContent"
    browser.until(f"{said}.includes('row')")
    assert "column" in browser.value(said)
    split = "[...document.querySelectorAll('#spent .legend span')].map(s => s.textContent)"
    assert browser.value(split) == ["compute 80 % 0:12", "data 20 % 0:03"]
    assert browser.complaints() == []


def test_the_log_is_there_when_asked_for(run: RunFolder, browser: Browser) -> None:
    browser.open(refresh(run.path, pictures=False))
    browser.value("document.querySelector('#log summary').click()")
    rows = "[...document.querySelectorAll('#log tr')].map(r => r.children[1].textContent)"
    assert browser.value(rows) == ["", "warning", "", "", "", ""]
    assert browser.complaints() == []


def test_switches_redraw(run: RunFolder, browser: Browser) -> None:
    browser.open(refresh(run.path, pictures=False))
    for box in ("raw", "log"):
        browser.value(
            "[...document.querySelectorAll('#chart-loss label')]"
            f".find(l => l.textContent === '{box}').firstChild.click()"
        )
    browser.value("document.querySelector('#all')?.click()")
    assert browser.complaints() == []


def test_the_cursor_tells_values_and_restarts(run: RunFolder, browser: Browser) -> None:
    browser.open(refresh(run.path, pictures=False))
    place = (
        "(() => { const o = document.querySelector('#chart-loss .u-over').getBoundingClientRect();"
        " return [o.left + o.width * 149 / 299, o.top + o.height / 2]; })()"
    )
    x, y = browser.value(place)
    browser.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    browser.until("document.querySelector('#chart-loss .legend').textContent.includes('step 150')")
    legend = browser.value("document.querySelector('#chart-loss .legend').textContent")
    assert "train" in legend and "ended without a word" in legend


def test_it_moves_while_the_run_goes_on(tmp_path: Path, browser: Browser, monkeypatch: Any) -> None:
    made = RunFolder.create(tmp_path, "charlm", None, {}, {"max_steps": 300})
    with made.lock():
        write(made, 100)
        page = refresh(made.path, pictures=False)
        browser.open(page)
        assert browser.value(TILE) == "100"
        assert browser.value("document.querySelector('#status').textContent") == "running"
        write(made, 200, 1, 100)
        refresh(made.path, pictures=False)
        browser.until(f"{TILE} === '200'")
        write(made, 300, 2, 200)
        made.update(status="done", step=300)
        refresh(made.path, pictures=False)
        browser.until(f"{TILE} === '300'")
    assert browser.value("document.querySelector('#status').textContent") == "done"
    assert browser.complaints() == []
    asked = {url.partition("?")[0] for url in browser.requests()}
    assert asked == {page.as_uri(), (page.parent / "plots" / "data.js").as_uri()}


def test_an_empty_run_is_a_page_too(tmp_path: Path, browser: Browser) -> None:
    made = RunFolder.create(tmp_path, "charlm")
    page = refresh(made.path, pictures=False)
    browser.events.clear()
    browser.ask("Page.navigate", url=page.as_uri())
    browser.until("document.readyState === 'complete' && document.querySelector('.tile')")
    assert browser.complaints() == []
    assert "no longer" not in browser.value("document.body.textContent")
    assert "surefoot resume 0001-charlm" in browser.value("document.body.textContent")
