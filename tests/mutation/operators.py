"""The ways in which a mutant differs from the product: those of cosmic-ray that matter here, and some of our own.

Ours are what cosmic-ray lacks: a statement, a keyword argument or a filter that is missing, membership, and exceptions
that are named `errors.This`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import cosmic_ray.plugins
import parso.python.tree

#: Name of the provider of our operators.
OWN = "own"

#: The other operators of cosmic-ray replace an operator by every other one. Most of those mutants are type errors, or
#: equal: `is` and `==` mean the same for members of an enum, and a union of types is never evaluated.
USED = re.compile(
    rf"{OWN}/\w+|core/(AddNot|Replace(TrueWithFalse|FalseWithTrue|AndWithOr|OrWithAnd|BreakWithContinue|ContinueWithBreak)"
    r"|NumberReplacer|RemoveDecorator|ZeroIterationForLoop|ReplaceUnaryOperator_Delete_(Not|USub)"
    r"|ReplaceBinaryOperator_(Add_Sub|Sub_Add|Mul_Div|Div_Mul|Pow_Mul|BitOr_BitAnd|BitAnd_BitOr)"
    r"|ReplaceComparisonOperator_(Eq_NotEq|NotEq_Eq|Is_IsNot|IsNot_Is"
    r"|Lt_LtE|Lt_GtE|LtE_Lt|LtE_Gt|Gt_GtE|Gt_LtE|GtE_Gt|GtE_Lt))"
)

_Position = tuple[tuple[int, int], tuple[int, int]]


class Operator:
    """An operator, as cosmic-ray expects it."""

    @classmethod
    def arguments(cls) -> tuple[()]:
        """Return the names of its arguments: none."""
        return ()

    def mutation_positions(self, node: Any) -> Iterator[_Position]:
        """Yield start and end of everything in this node that it can change."""
        raise NotImplementedError

    def mutate(self, node: Any, index: int) -> Any:
        """Return the node with the `index`-th of them changed."""
        raise NotImplementedError


class RemoveStatement(Operator):
    """A call, an assignment to an attribute or a key, a `raise` or a `return` is missing.

    Without an assignment to a local name the mutant would only raise a NameError.
    """

    def mutation_positions(self, node: Any) -> Iterator[_Position]:
        if node.type != "simple_stmt" or not self._has_effect(node.children[0]):
            return
        function = node.search_ancestor("funcdef")
        if function is not None and function.name.value != "__init__":
            yield node.children[0].start_pos, node.children[0].end_pos

    def mutate(self, node: Any, index: int) -> Any:
        first = node.get_first_leaf()
        node.children[0] = parso.python.tree.Name("pass", first.start_pos, prefix=first.prefix)
        return node

    @staticmethod
    def _has_effect(statement: Any) -> bool:
        match statement.type:
            case "keyword":
                return statement.value in ("return", "raise", "break", "continue")
            case "return_stmt" | "raise_stmt" | "del_stmt":
                return True
            case "atom_expr":
                return bool(statement.children[-1].children[0] == "(")
            case "expr_stmt":
                target, sign = statement.children[:2]
                return target.type == "atom_expr" or sign.type == "augassign" or sign in ("+=", "-=", "|=")
        return False


class RemoveKeywordArgument(Operator):
    """A keyword argument of a call is missing: its default takes its place."""

    def mutation_positions(self, node: Any) -> Iterator[_Position]:
        for argument in self._arguments(node):
            yield argument.start_pos, argument.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        at = node.children.index(self._arguments(node)[index])
        # With the comma that follows it, or for the last one the comma before.
        commas = [other for other in (at + 1, at - 1) if node.type == "arglist" and 0 <= other < len(node.children)]
        for gone in sorted([at, *commas[:1]], reverse=True):
            del node.children[gone]
        return node

    @staticmethod
    def _arguments(node: Any) -> list[Any]:
        trailer = node.parent if node.type == "arglist" else node
        if trailer is None or trailer.type != "trailer" or trailer.children[0] != "(":
            return []
        return [one for one in node.children if one.type == "argument" and one.children[1] == "="]


class NegateFilter(Operator):
    """The condition of a comprehension is the opposite."""

    def mutation_positions(self, node: Any) -> Iterator[_Position]:
        if node.type == "comp_if":
            yield node.children[1].start_pos, node.children[1].end_pos

    def mutate(self, node: Any, index: int) -> Any:
        node.children[1] = parso.parse(f" not ({node.children[1].get_code().strip()})")
        return node


class ReplaceMembership(Operator):
    """`in` is `not in`, and the other way round."""

    def mutation_positions(self, node: Any) -> Iterator[_Position]:
        if node.type == "comparison" and node.children[1].get_code().strip() in ("in", "not in"):
            yield node.children[1].start_pos, node.children[1].end_pos

    def mutate(self, node: Any, index: int) -> Any:
        is_in = node.children[1].get_code().strip() == "in"
        node.children[1] = parso.parse(" not in" if is_in else " in")
        return node


class ReplaceException(Operator):
    """A handler does not catch one of its exceptions, but another one, which is never raised."""

    def mutation_positions(self, node: Any) -> Iterator[_Position]:
        for caught in self._caught(node):
            yield caught.start_pos, caught.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        caught = self._caught(node)[index]
        siblings = caught.parent.children
        siblings[siblings.index(caught)] = parso.parse(" StopAsyncIteration")
        return node

    @staticmethod
    def _caught(node: Any) -> list[Any]:
        if node.type != "except_clause":
            return []
        caught = node.children[1]
        if caught.type != "atom":
            return [caught]
        return [one for one in caught.children[1].children if one != ","]


def register() -> None:
    """Make our operators known to cosmic-ray, in this process."""
    own = (RemoveStatement, RemoveKeywordArgument, NegateFilter, ReplaceMembership, ReplaceException)
    cosmic_ray.plugins.OPERATOR_PROVIDERS[OWN] = {operator.__name__: operator for operator in own}
