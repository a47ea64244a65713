"""`{run}`: Python in a page, executed when the page is built.

The blocks of a page share a namespace and a temporary directory, and run in order. What they print
stands below the code, then the figures that the block names. An exception or a warning fails the
build, with page and line.

    :figure: axes           names of variables: a figure, axes, or an array of axes
    :alt: what is seen      a text for those who do not see the figure
    :output: markdown       what was printed is a part of the page; `text` by default
    :hide-code:             the code is run, not shown

`Session` needs no Sphinx; `setup` does.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

DPI = 180  # of pictures, which are shown at 96
KEY = "run.session"
PLUS_MINUS = "\N{PLUS-MINUS SIGN}"  # a number and its error stay on one line


class PageError(Exception):
    """Code of a page that does not run; the message begins with the page and the line."""


@dataclass(frozen=True)
class Output:
    """What a block of code gave: all that it printed, and its figures by the variable's name."""

    stdout: str
    figures: dict[str, Any]


class Session:
    """The namespace and the temporary directory of one page.

    Args:
        page: what the page is called in errors.
    """

    def __init__(self, page: str) -> None:
        self.page = page
        self.namespace: dict[str, Any] = {"__name__": "__page__"}
        self.folder = tempfile.TemporaryDirectory()
        self.drawn = 0

    def run(self, code: str, line: int = 1, figures: Sequence[str] = ()) -> Output:
        """Execute a block.

        Args:
            code: the block.
            line: the block's first line in the page, from 1.
            figures: variables that hold figures afterwards.

        Raises:
            PageError: for an exception, a warning, or a variable that holds no figure.
        """
        printed = io.StringIO()
        try:
            # Lines of the block are counted as lines of the page.
            program = compile("\n" * (line - 1) + code, self.page, "exec", dont_inherit=True)
            with (
                contextlib.chdir(self.folder.name),
                contextlib.redirect_stdout(printed),
                contextlib.redirect_stderr(io.StringIO()),  # progress bars
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("error")
                warnings.simplefilter("ignore", DeprecationWarning)
                exec(program, self.namespace)
        except (Exception, SystemExit) as error:
            at = _line(error, self.page, line)
            raise PageError(f"{self.page}:{at}: {type(error).__name__}: {error}") from error
        found = {name: self._figure(name, line) for name in figures}
        return Output(printed.getvalue(), found)

    def _figure(self, name: str, line: int) -> Any:
        if name not in self.namespace:
            close = difflib.get_close_matches(name, self.namespace, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise PageError(f"{self.page}:{line}: no variable is called {name!r}.{hint}")
        value = self.namespace[name]
        while not hasattr(value, "savefig"):
            if hasattr(value, "figure"):
                value = value.figure
            elif hasattr(value, "flat"):
                value = next(iter(value.flat))
            else:
                kind = type(value).__name__
                raise PageError(f"{self.page}:{line}: {name!r} is a {kind}, no figure or axes")
        return value

    def close(self) -> None:
        """Remove the temporary directory."""
        self.folder.cleanup()


def _line(error: BaseException, page: str, first: int) -> int:
    """Return the line of the page at which an error arose."""
    if isinstance(error, SyntaxError) and error.filename == page and error.lineno:
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == page and frame.lineno]
    return lines[-1] if lines else first


def _directive() -> type:
    from docutils import nodes  # type: ignore
    from docutils.parsers.rst import directives  # type: ignore
    from docutils.statemachine import StringList  # type: ignore
    from PIL import Image
    from sphinx.errors import ExtensionError  # type: ignore
    from sphinx.util.docutils import SphinxDirective  # type: ignore
    from sphinx.util.nodes import nested_parse_with_titles  # type: ignore

    class Run(SphinxDirective):
        """Runs a block in the session of its page."""

        has_content = True
        option_spec: ClassVar[dict[str, Any]] = {
            "figure": directives.unchanged_required,
            "alt": directives.unchanged_required,
            "output": lambda word: directives.choice(word, ("text", "markdown")),
            "hide-code": directives.flag,
        }

        def run(self) -> list[Any]:
            """Return the code, what it printed and its figures."""
            names = self.options.get("figure", "").split()
            if bool(names) != ("alt" in self.options):
                raise self.error("`:figure:` and `:alt:` go together: say what is seen")
            file, line = self.get_source_info()
            data = self.env.temp_data
            if KEY not in data:
                data[KEY] = Session(str(self.env.doc2path(self.env.docname, base=False)))
            session: Session = data[KEY]
            code = "\n".join(self.content)
            try:
                done = session.run(code, _first(Path(file), line, self.content), names)
            except PageError as error:
                raise ExtensionError(str(error), error.__cause__) from error
            shown = nodes.container(classes=["run"])
            if "hide-code" not in self.options:
                shown += nodes.literal_block(code, code, language="python")
            result = [shown, *self._printed(done.stdout)]
            return result + [self._picture(session, figure) for figure in done.figures.values()]

        def _printed(self, text: str) -> list[Any]:
            if not text.strip():
                return []
            if self.options.get("output") == "markdown":
                text = text.replace(
                    f" {PLUS_MINUS} ", f"\N{NO-BREAK SPACE}{PLUS_MINUS}\N{NO-BREAK SPACE}"
                )
                place = nodes.section(document=self.state.document)
                nested_parse_with_titles(self.state, StringList(text.splitlines(), "run"), place)
                return list(place.children)
            output = nodes.container(classes=["run-output"])
            output += nodes.literal_block(text.rstrip(), text.rstrip(), language="text")
            return [output]

        def _picture(self, session: Session, figure: Any) -> Any:
            session.drawn += 1
            name = f"{self.env.docname.replace('/', '-')}-{session.drawn}.png"
            folder = Path(self.env.srcdir) / "_run"
            folder.mkdir(exist_ok=True)
            figure.savefig(folder / name, dpi=DPI, bbox_inches="tight", pad_inches=0.1)
            with Image.open(folder / name) as drawn:
                width = f"{round(96 * drawn.width / DPI)}px"
            alt, kind = self.options["alt"], ["run-figure"]
            return nodes.image(uri=f"/_run/{name}", alt=alt, width=width, classes=kind)

    return Run


def _first(page: Path, near: int, content: Sequence[str]) -> int:
    """Return the line of the page at which a directive's code begins, options left behind."""
    lines, code = page.read_text(encoding="utf-8").splitlines(), list(content)
    for at in range(max(near - 2, 0), len(lines)):
        if lines[at : at + len(code)] == code:
            return at + 1
    return near


def setup(app: Any) -> dict[str, bool]:
    """Add the directive; a page's session ends with the page."""

    def close(app: Any, doctree: Any) -> None:
        data = app.env.temp_data
        if KEY in data:
            data[KEY].close()
            del data[KEY]

    app.add_directive("run", _directive())
    app.connect("doctree-read", close)
    return {"parallel_read_safe": True}
