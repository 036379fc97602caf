"""The statements of a source file, for tests that read the product's."""

from __future__ import annotations

import ast
from collections import deque
from collections.abc import Iterator

#: Where a statement, or a part of one such as a handler of exceptions, keeps further statements.
_PARTS = ("body", "orelse", "finalbody", "handlers", "cases")


def statements(tree: ast.AST) -> Iterator[ast.stmt]:
    """Yield every statement in a tree: imports, definitions and assignments are never within an expression.

    `ast.walk` looks through the expressions as well, which are nine nodes of ten.
    """
    waiting = deque([tree])
    while waiting:
        node = waiting.popleft()
        if isinstance(node, ast.stmt):
            yield node
        for part in _PARTS:
            # A lambda's body is an expression.
            inner = getattr(node, part, None)
            if isinstance(inner, list):
                waiting.extend(inner)
