"""Sphinx settings of the documentation: `make docs` builds it into build/site."""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "shapelaw"
author = "the shapelaw authors"
project_copyright = author
version = release = installed_version("shapelaw")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "site_parts"]
exclude_patterns = ["_generated", "proposals"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
napoleon_google_docstring = False
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True

# Every reference must lead somewhere. Names inside the package that have no page of their own stay
# plain text; docstrings may name them for readers of the code.
nitpicky = True
smartquotes = False  # `--where` keeps its two hyphens
INSIDE = r"shapelaw\.(scaling|trainers|search)\..*"
OTHERS = r"(numpy|np|pandas|pd|pathlib|collections)\..*|\w+\[.*"  # and types with brackets
nitpick_ignore_regex = [("py:.*", rf"{INSIDE}|{OTHERS}|[^.]*")]

html_theme = "furo"
html_title = "shapelaw"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_math_renderer = "mathml"
