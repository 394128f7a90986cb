"""Great Expectations' Data Docs, made to open from disk with no network.

The pages link style sheets, scripts and a logo from content-delivery networks, and a browser without network
waits for them; the index is drawn by those scripts alone. Scripts, styles and remote parts go, one short
style comes, and the index becomes a list of links. What the data says was escaped before (validation.data);
a policy in each page's head forbids scripts all the same.
"""

import html
import re
from pathlib import Path

_SCRIPTS_AND_STYLES = re.compile(r"<(script|style)\b.*?</\1>", re.DOTALL | re.IGNORECASE)
_REMOTE_TAGS = re.compile(r"<(?:link|img|iframe)\b[^>]*(?:src|href)=\"?https?://[^>]*>", re.IGNORECASE)
_HANDLERS = re.compile(r"\son[a-z]+\s*=\s*(?:\"[^\"]*\"|'[^']*'|[^\s>]+)(?=[^<>]*>)", re.IGNORECASE)

_NO_SCRIPTS = "default-src 'none'; style-src 'unsafe-inline'"
_POLICY = f'<meta http-equiv="Content-Security-Policy" content="{_NO_SCRIPTS}">\n'
_STYLE = """<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
table { border-collapse: collapse; margin: .5rem 0 1rem; width: 100%; }
th, td { border: 1px solid #8886; padding: .3rem .6rem; text-align: left; vertical-align: top; }
.alert { background: #8881; border-left: 4px solid #888; margin: 1rem 0 .5rem; padding: .5rem 1rem; }
.btn-group, .modal, footer { display: none; }
.fa-check-circle::before { color: #17803d; content: "\\2713 passed "; }
.fa-times::before { color: #b3261e; content: "\\2717 failed "; }
.fa-exclamation-triangle::before { color: #8a5a00; content: "! error "; }
@media (prefers-color-scheme: dark) { body { background: #16181c; color: #e8e8e8; } a { color: #8ab4f8; } }
</style>
"""


def make_offline(folder: Path) -> None:
    """Rewrite every page under `folder`, and drop the how-to animations that only the scripts showed."""
    for page in folder.rglob("*.html"):
        page.write_text(_offline(page.read_text(encoding="utf-8")), encoding="utf-8")
    for animation in folder.rglob("*.gif"):
        animation.unlink()
    (folder / "index.html").write_text(_index(folder), encoding="utf-8")


def _offline(page: str) -> str:
    for remote in (_SCRIPTS_AND_STYLES, _REMOTE_TAGS, _HANDLERS):
        page = remote.sub("", page)
    return page.replace("</head>", f"{_POLICY}{_STYLE}</head>", 1)


def index_of_pieces(folder: Path) -> None:
    """Write the index of a folder that holds whole sites, of a table that was checked in pieces."""
    names = sorted((page.parent.name for page in folder.glob("*/index.html")), key=lambda n: (len(n), n))
    items = "".join(f'<li><a href="{name}/index.html">{name.replace("_", " ")}</a></li>' for name in names)
    (folder / "index.html").write_text(_page(f"<ul>{items}</ul>"), encoding="utf-8")


def _index(folder: Path) -> str:
    sections = {"validations": "What was checked, and the result", "expectations": "What is expected"}
    return _page("".join(f"<h2>{title}</h2>{_links(folder, name)}" for name, title in sections.items()))


def _page(body: str) -> str:
    head = f'<meta charset="utf-8"><title>Data Docs</title>{_POLICY}{_STYLE}'
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body><h1>Data Docs</h1>{body}</body></html>\n'
    )


def _links(folder: Path, name: str) -> str:
    pages = sorted(page.relative_to(folder).as_posix() for page in (folder / name).rglob("*.html"))
    items = (f'<li><a href="{html.escape(page)}">{html.escape(Path(page).stem)}</a></li>' for page in pages)
    return f"<ul>{''.join(items)}</ul>"
