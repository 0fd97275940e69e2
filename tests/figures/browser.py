"""A page in Qt's Chromium (PyQt6-WebEngine), without a screen: ``python browser.py < JOB``.

A job is JSON: ``url``, ``width``, ``height`` in pixels, ``dark``, ``steps`` (expressions of JavaScript, which may be
promises) and ``picture``, a file. It prints ``values`` of the steps, and what the page complained of, ``problems``. A
process of its own, because a browser's colour scheme is set before it starts.
"""

import json
import os
import subprocess
import sys

WAIT_MS = 100_000


def visit(url, width=1280, height=900, dark=False, steps=(), picture=None):
    """Values of the steps on a page, in a process of its own."""
    job = {"url": url, "width": width, "height": height, "dark": dark, "steps": list(steps), "picture": picture}
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1} --log-level=3"
    settings = {
        "QT_QPA_PLATFORM": "offscreen", "QTWEBENGINE_DISABLE_SANDBOX": "1", "QTWEBENGINE_CHROMIUM_FLAGS": scheme,
        "QT_LOGGING_RULES": "*=false",
    }  # fmt: skip
    done = subprocess.run([sys.executable, __file__], input=json.dumps(job), capture_output=True, text=True,
                          env=os.environ | settings, timeout=120)  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"the browser ended with {done.returncode}: {done.stderr[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main():
    from PyQt6.QtCore import QTimer, QUrl
    from PyQt6.QtWebEngineCore import QWebEnginePage
    from PyQt6.QtWebEngineWidgets import QWebEngineView
    from PyQt6.QtWidgets import QApplication

    class Page(QWebEnginePage):
        problems = []

        def javaScriptConsoleMessage(self, level, message, line, source):  # noqa: N802 (Qt calls it)
            if level == QWebEnginePage.JavaScriptConsoleMessageLevel.ErrorMessageLevel:
                self.problems.append(message)

    job = json.load(sys.stdin)
    app = QApplication(sys.argv)
    view = QWebEngineView()
    page = Page(view)
    view.setPage(page)
    view.resize(job["width"], job["height"])
    steps, values = iter(job["steps"]), []

    def end():
        if job["picture"]:
            view.grab().save(job["picture"])
        print(json.dumps({"values": values, "problems": page.problems}), flush=True)
        os._exit(0)  # Qt takes its threads down in an order of its own

    def begin(*_):
        step = next(steps, None)
        if step is None:
            QTimer.singleShot(300, end)
            return
        page.runJavaScript(
            f"window.found = undefined; (async () => JSON.stringify(await ({step}) ?? null))()"
            ".then(text => window.found = text, error => window.found = JSON.stringify('error: ' + error)); 0",
            lambda _: ask(),
        )

    def ask():
        page.runJavaScript("window.found", answered)

    def answered(text):
        if text is None:
            QTimer.singleShot(30, ask)
        else:
            values.append(json.loads(text))
            begin()

    view.loadFinished.connect(begin)
    QTimer.singleShot(WAIT_MS, lambda: os._exit(3))
    view.setUrl(QUrl(job["url"]))
    view.show()
    app.exec()


if __name__ == "__main__":
    main()
