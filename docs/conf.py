"""How Sphinx builds the documentation site: `make docs`."""

import os
import posixpath
import re
import sys
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")  # sums in a fixed order, in the gallery

from genbound.version import __version__  # noqa: E402

SOURCE = "https://github.com/genbound/genbound/blob/main/"

project = "genbound"
author = "The genbound authors"
release = version = __version__
html_title = f"genbound {__version__}"
root_doc = "index"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["README.md"]  # the same list for readers on GitHub
html_theme = "furo"
html_copy_source = False
html_theme_options = {"source_repository": "https://github.com/genbound/genbound/", "source_branch": "main"}
html_theme_options["source_directory"] = "docs/"

# Anchors as GitHub makes them, so that one link serves both.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

autodoc_typehints = "none"  # the signatures have them
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
add_module_names = False

copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True
copybutton_line_continuation_character = "\\"

sphinx_gallery_conf = {
    "examples_dirs": "../examples/gallery",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/plot_",
    "ignore_pattern": r"demo_pair\.py",
    "write_computation_times": False,
    "download_all_examples": False,
    "show_memory": False,
    "capture_repr": ("_repr_html_",),
    "abort_on_example_error": True,
    "plot_gallery": "True",
}


def link_to_source(app, docname, source):
    """Links out of docs/ lead to the repository: examples and modules are no pages of the site."""
    folder = posixpath.dirname(docname)

    def absolute(match):
        target = match.group(1)
        path = posixpath.normpath(posixpath.join("docs", folder, urlsplit(target).path))
        return match.group(0) if path.startswith("docs/") else f"]({SOURCE}{path})"

    source[0] = re.sub(r"\]\(((?:\.\./)+[^)\s]*)\)", absolute, source[0])


def list_references(app, what, name, obj, options, lines):
    """Each entry of a docstring's references is a point of a list; its lines after the first are indented further."""
    if "References:" not in lines:
        return
    begin = lines.index("References:") + 1
    entries = []
    for line in lines[begin:]:
        if line.startswith("        ") and entries:
            entries[-1] += " " + line.strip()
        else:
            entries.append("    - " + line.strip() if line.strip() else "")
    lines[begin:] = entries


def setup(app):
    """Sphinx calls this once."""
    app.connect("source-read", link_to_source)
    app.connect("autodoc-process-docstring", list_references, priority=400)  # before napoleon
