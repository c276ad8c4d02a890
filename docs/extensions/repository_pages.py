"""MkDocs hook: publish repository files outside `docs/`, resolve links to them, and check that the API is complete.

Pages at the repository root (ARCHITECTURE.md and others), the READMEs of `infra` and the notebooks of `examples` become
pages of the site. A link to any other file of the repository leads to a copy of that file in the site; a link to a module or
package leads to its page in the API reference. A link to something that does not exist is left for MkDocs to report.
"""

from __future__ import annotations

import ast
import base64
import json
import logging
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocstrings import Inventory

log = logging.getLogger("mkdocs.hooks.repository_pages")
# One line per module otherwise. `mkdocs build --quiet` is no alternative: it hides warnings from the strict mode.
logging.getLogger("mkdocs.plugins.api-autonav").setLevel(logging.WARNING)

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("mibf", "pipeline", "jobs")
#: Pages outside `docs/`: file in the repository, path in the site.
PAGES = {
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "infra/README.md": "infra/index.md",
    "infra/kuberay/README.md": "infra/kuberay.md",
} | {
    f"examples/notebooks/{path.name}": f"notebooks/{path.stem}.md"
    for path in sorted((ROOT / "examples/notebooks").glob("*.ipynb"))
}
#: Site paths of files that pages link to and that are not pages: the same path below this folder.
COPIES = "repository"

_FENCE = re.compile(r"^ *(```|~~~)")
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^()\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of `PAGES`; a missing file is a warning, so a strict build fails."""
    for source, page in PAGES.items():
        if source.endswith(".ipynb"):
            _add_notebook(ROOT / source, page, files, config)
        elif (ROOT / source).is_file():
            files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
        else:
            log.warning("%s is missing", source)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links to repository files as links within the site."""
    site_path = page.file.src_uri
    sources = {page: source for source, page in PAGES.items()}
    if page.file.generated_by and site_path not in sources:
        return markdown  # a page of the API reference
    source = sources.get(site_path, f"docs/{site_path}")

    def rewrite(match: re.Match[str]) -> str:
        target, _, anchor = match["target"].partition("#")
        if not target or "://" in target or target.startswith(("mailto:", "/")):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        found = _site_path(path, files, config)
        if found is None:
            return match[0] if not (ROOT / path).is_dir() else match["text"]
        relative = posixpath.relpath(found, posixpath.dirname(site_path) or ".")
        return f"{match['image']}[{match['text']}]({relative}{'#' + anchor if anchor else ''})"

    lines, fenced = [], False
    for line in markdown.split("\n"):
        fenced ^= bool(_FENCE.match(line))
        lines.append(line if fenced else _LINK.sub(rewrite, line))
    return "\n".join(lines)


def on_post_build(config: MkDocsConfig) -> None:
    """Warn of every public name that the API reference lacks; a strict build then fails."""
    with (Path(config.site_dir) / "objects.inv").open("rb") as stream:
        documented = set(Inventory.parse_sphinx(stream, domain_filter=["py"]))
    names = [name for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")) for name in _public(path)]
    missing = [name for name in names if name not in documented]
    for name in missing:
        log.warning("%s is missing from the API reference", name)
    log.info("API reference: %d public modules, classes and functions, %d missing", len(names), len(missing))


def _site_path(path: str, files: Files, config: MkDocsConfig) -> str | None:
    """Path in the site of a repository file or folder; None if it has none. Files that are not pages are copied."""
    candidates = [PAGES.get(path), PAGES.get(f"{path}/README.md")]
    if path.startswith("docs/"):
        candidates.append(path.removeprefix("docs/"))
    if path.split("/")[0] in PACKAGES:
        candidates += [f"reference/{path.removesuffix('.py')}.md", f"reference/{path.removesuffix('/__init__.py')}/index.md"]
    for candidate in candidates:
        if candidate and files.get_file_from_path(candidate):
            return candidate
    if not (ROOT / path).is_file() or path.startswith(".."):
        return None
    name = f"{COPIES}/{path}.txt" if Path(path).suffix in (".md", ".py", "") else f"{COPIES}/{path}"
    if not files.get_file_from_path(name):
        files.append(File.generated(config, name, content=(ROOT / path).read_bytes()))
    return name


def _add_notebook(path: Path, page: str, files: Files, config: MkDocsConfig) -> None:
    """Add a notebook as a page with its texts, code and stored outputs, and as a file to download."""
    blocks: list[str] = []
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            blocks.append(source)
            continue
        language = "sh" if source.startswith("%%sh") else "python"
        code = source.removeprefix("%%sh\n")
        blocks.append(f"```{language}\n{code}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{Path(page).stem}-{len(blocks)}.png"
                picture = base64.b64decode("".join(data["image/png"]))
                files.append(File.generated(config, f"{posixpath.dirname(page)}/{name}", content=picture))
                blocks.append(f'<img src="{name}" alt="Output of the code above">')
            elif text := "".join(output.get("text") or data.get("text/plain", "")):
                blocks.append(f"```text\n{text.rstrip()}\n```")
    download = f'<a href="{path.name}" download>Download this notebook</a> to run it.'
    files.append(File.generated(config, page, content="\n\n".join([blocks[0], download, *blocks[1:]])))
    files.append(File.generated(config, f"{posixpath.dirname(page)}/{path.name}", content=path.read_bytes()))


def _public(path: Path) -> Iterator[str]:
    """Names of a module and of its public classes, methods and functions; none for a private module or `__main__`."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    if any(part.startswith("_") for part in parts):
        return
    module = ".".join(parts)
    yield module
    yield from _definitions(ast.parse(path.read_text("utf-8")), module)


def _definitions(scope: ast.AST, prefix: str) -> Iterator[str]:
    for node in ast.iter_child_nodes(scope):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if node.name.startswith("_"):
                continue
            yield f"{prefix}.{node.name}"
            if isinstance(node, ast.ClassDef):
                yield from _definitions(node, f"{prefix}.{node.name}")
