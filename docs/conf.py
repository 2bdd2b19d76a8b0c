"""The site: `pip install ".[docs]"`, then `sphinx-build -c docs . site`.

Its source is the whole folder, so that links between documents are the same here and there.
"""

from __future__ import annotations

import os

import hag_plugin

# PyG's bars in a notebook without ipywidgets: what its kernel warns of would stand on the page.
os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")

project = "hag_plugin"
author = "the developers of hag_plugin"
release = version = hag_plugin.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
root_doc = "docs/index"
include_patterns = ["docs/*.md", "docs/notebooks/*.ipynb", "examples/**/*.md", "[CS]*.md"]
myst_heading_anchors = 3

nb_execution_mode = "force"  # the outputs shown are those of this build: none are stored
nb_execution_raise_on_error = True
nb_execution_timeout = 120  # seconds, of a cell

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
napoleon_numpy_docstring = False
default_role = "code"  # of what stands in single backticks

html_theme = "furo"
html_title = f"hag_plugin {release}"
html_static_path = ["static"]  # from the folder of this file
html_css_files = ["wide.css"]
html_extra_path = ["root"]  # the way from the folder of the site to its first page
html_theme_options = {"footer_icons": []}
