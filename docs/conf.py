"""The documentation site: `make docs` builds it from the pages in this folder and the docstrings of the package.

The pages are written for a code host, too. docs/_extensions makes pages of a site from them: a link to a file of the
sources leads to a page that shows the file, and a folder's README becomes the contents of that folder.
"""

import re
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_extensions"))
_metadata = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]

project = _metadata["name"]
author = "the untorn developers"
project_copyright = re.search(r"Copyright \(c\) (.+)", (HERE.parent / "LICENSE").read_text())[1]
release = version = _metadata["version"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sources",
    "command_help",
]
exclude_patterns = ["_extensions", "_static"]
nitpicky = True
default_role = "code"
highlight_language = "none"

myst_heading_anchors = 4
myst_url_schemes = {"http": None, "https": None, "mailto": None, "source": None}

# The frameworks are large, and their classes only appear in signatures.
autodoc_mock_imports = ["jax", "ml_dtypes", "ray", "sklearn", "torch"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
autodoc_default_options = {"members": True}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
# Signatures name types that have no page: those of other packages, and what is inside of this one.
nitpick_ignore_regex = [
    ("py:.*", r"(?!untorn\b).*"),
    ("py:.*", r"untorn\.(_core|board|engines|share|train|typevars|torch\.\w+)\..+"),
]

html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
