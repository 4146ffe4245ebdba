"""How Sphinx reads the pages and what the site looks like; `make_site.py` starts it.

One rule: nothing is fetched when a page is looked at: the theme's fonts are the reader's own, scripts and styles lie beside
the pages.
"""

import tomllib
from pathlib import Path

_PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = "Bucketworks"
version = release = _PROJECT["version"]
language = "en"
extensions = ["myst_parser"]
root_doc = "index"
source_suffix = {".md": "markdown"}
highlight_language = "none"
myst_heading_anchors = 6
myst_links_external_new_tab = False

html_theme = "furo"
html_title = f"Bucketworks {version}"
html_static_path = ["static"]
html_favicon = "static/favicon.svg"
html_css_files = ["site.css"]
html_js_files = [("site.js", {"priority": 300})]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_show_copyright = False
html_last_updated_fmt = None
html_theme_options = {
    "top_of_page_buttons": [],
    "navigation_with_keys": True,
    "light_css_variables": {"color-brand-primary": "#0b5a77", "color-brand-content": "#0b5a77"},
    "dark_css_variables": {"color-brand-primary": "#7cc7e8", "color-brand-content": "#7cc7e8"},
}
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
