"""Sphinx: pages from Markdown, docstrings and cards; no page asks the network for anything.

sphinx-build -W --keep-going -b html docs docs/_build
"""

import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "subjunctive"
author = "The subjunctive authors"
copyright = author
version = release = metadata.version("subjunctive")
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "api", "cards", "run"]
exclude_patterns = ["_build", "_ext", "_run"]
nitpicky = False
smartquotes = False  # `--do` is no dash

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
add_module_names = False

html_theme = "furo"
html_title = f"subjunctive {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
