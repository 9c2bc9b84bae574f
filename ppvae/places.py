"""Places to write, refused before any work is done, in the words of the path that was given."""

import os
from pathlib import Path


def check_new(path: Path) -> None:
    """Raise ValueError where no new file or folder can be made at `path`."""
    if path.exists():
        raise ValueError(f"{path} exists already: choose another name, or remove it first")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"there is no folder {path.parent} to write {path.name} in: make it first")
    if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise ValueError(f"cannot write {path}: its folder may not be written in; choose another, or change its permissions")


def check_page(path: Path) -> None:
    """Raise ValueError where no web page can be written to `path`; one that is there already may be replaced.

    >>> check_page(Path("page.txt"))
    Traceback (most recent call last):
    ValueError: cannot write page.txt: a report is one web page, so name an .html file
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file in it, such as {path / 'report.html'}")
    if path.suffix.lower() not in ("", ".html", ".htm"):
        raise ValueError(f"cannot write {path}: a report is one web page, so name an .html file")
    if not path.exists():
        check_new(path)
    elif not os.access(path, os.W_OK):
        raise ValueError(f"cannot write {path}: it may not be changed; choose another name, or change its permissions")
