"""The guide as a site, readable without a network: python -m sphinx -W docs build/docs (pip install 'xinit[docs]')."""

import xinit

project = "xinit"
version = release = xinit.__version__
html_title = f"xinit {version}"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["pictures"]

myst_heading_anchors = 3  # links may lead to a heading
autodoc_typehints = "none"  # signatures would be longer than what they say
autodoc_member_order = "bysource"
napoleon_use_rtype = False
napoleon_preprocess_types = False

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["guide.css"]
html_copy_source = False
html_show_sphinx = False
