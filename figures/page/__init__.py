"""The page of a sweep: one HTML file that opens from disk and loads nothing. Imports no torch."""

from figures.page.write import make_page, write_page

__all__ = ["make_page", "write_page"]
