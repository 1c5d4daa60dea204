"""What mkdocstrings asks while it reads the package: our docstrings say ``Example:`` and name things as Sphinx does."""

from __future__ import annotations

import re
from typing import Any

import griffe


class OurStyle(griffe.Extension):
    """Turns ``Example:`` into the section that is set as code, and ``:func:`x``` into code."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the text of one docstring before it is parsed."""
        if obj.docstring is not None:
            text = re.sub(r"^(\s*)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r":(?:func|class|meth|data|mod|attr):`~?([^`]+)`", r"`\1`", text)
