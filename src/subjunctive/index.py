"""An index that imports a name when it is first asked for, so that a room may hold many methods.

A room's `__init__.py` lists its public names once, as imports that only a type checker runs:

    if TYPE_CHECKING:
        from subjunctive.mechanisms.vae import VAE as VAE

    __getattr__, __dir__, __all__ = lazy(__name__)
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any


def lazy(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` and `__all__` of a package, by its `if TYPE_CHECKING` block.

    Args:
        package: its dotted name, `__name__`; it is being imported.

    Example:
        >>> import subjunctive.mechanisms as mechanisms
        >>> mechanisms.LinearGaussian.__module__
        'subjunctive.mechanisms.linear'
        >>> mechanisms.LinearGausian
        Traceback (most recent call last):
        AttributeError: subjunctive.mechanisms has no name 'LinearGausian'. Did you mean 'LinearGaussian'?
    """  # noqa: E501
    module = sys.modules[package]
    blocks = [n for n in ast.parse(inspect.getsource(module)).body if isinstance(n, ast.If)]
    lines = [line for b in blocks for line in b.body if isinstance(line, ast.ImportFrom)]
    homes = {a.asname or a.name: (line.module, a.name) for line in lines for a in line.names}

    def find(name: str) -> Any:
        if name in homes:
            home, there = homes[name]
            value = getattr(importlib.import_module(str(home)), there)
            setattr(module, name, value)
            return value
        if name.startswith("_"):  # the machinery of imports asks for names that may be absent
            raise AttributeError(name)
        if find_spec(f"{package}.{name}"):
            return importlib.import_module(f"{package}.{name}")
        from subjunctive.variable import nearest

        raise AttributeError(f"{package} has no name {name!r}.{nearest(name, homes)}")

    return find, lambda: sorted({*vars(module), *homes}), sorted(homes)
