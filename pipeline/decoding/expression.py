"""Expressions of derived bands, such as `(nir - red) / (nir + red)`: parsed to a whitelist, and never run as Python.

Allowed are + - * / ** and parentheses, numbers, names of bands, and a few functions. Standard library only in this module.
"""

from __future__ import annotations

import ast
import keyword
import math
import re
import warnings
from dataclasses import dataclass
from functools import lru_cache

#: Functions of a pixel's height and those of its neighbors, which are up to `HALO` pixels away.
TERRAIN, HALO = ("slope", "northness", "eastness"), 1
#: Functions of a pixel's values, with their numbers of arguments.
PIXELWISE = {"sqrt": 1, "log": 1, "abs": 1, "minimum": 2, "maximum": 2}
#: Allowed functions, with their numbers of arguments.
FUNCTIONS = PIXELWISE | dict.fromkeys(TERRAIN, 1)
OPERATORS: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**"}
#: Limits of an expression: its characters, and how deep operations are inside each other (a sum of 128 bands: 128).
LONGEST, DEEPEST = 2000, 150
#: How bands are named.
NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"

_CHARACTERS = re.compile(r"[A-Za-z0-9_+\-*/()., ]*")


class ExpressionError(ValueError):
    """An expression that is not arithmetic on band names; the message has the position and what is allowed."""


@dataclass(frozen=True)
class Operation:
    """An operator or a function, by its symbol, with its operands."""

    symbol: str  #: one of `OPERATORS` or `FUNCTIONS`, or `negative`
    operands: tuple[Node, ...]


#: A number, the name of a band, or an operation.
Node = float | str | Operation


@lru_cache(maxsize=256)
def parse(text: str, bands: tuple[str, ...]) -> Node:
    """Parse an expression on bands of these names.

    Raises:
        ExpressionError: it is too long or too deep, or not arithmetic on these names.
    """
    expression = _Expression(" ".join(text.split()), bands)
    if len(expression.text) > LONGEST:
        raise ExpressionError(f"is {len(expression.text):,} characters long; at most {LONGEST:,} are allowed")
    foreign = _CHARACTERS.match(expression.text)
    assert foreign is not None
    if foreign.end() < len(expression.text):
        raise expression.refused(foreign.end(), expression.text[foreign.end()])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of `2if`, which is refused below
            tree = ast.parse(expression.text, mode="eval").body
    except SyntaxError as error:
        # Python gives no position where the text ends too early.
        raise expression.incomplete((error.offset or len(expression.text) + 1) - 1) from error
    except (MemoryError, RecursionError) as error:
        raise ExpressionError("has too many operations inside each other; split it over several bands") from error
    parsed = expression.node(tree, 1)
    if not used(parsed):
        raise ExpressionError(f"`{_shortened(expression.text)}` names no band; {expression.allowed}")
    return parsed


def used(node: Node) -> frozenset[str]:
    """The names of the bands that an expression uses."""
    if isinstance(node, Operation):
        return frozenset[str]().union(*(used(operand) for operand in node.operands))
    return frozenset((node,)) if isinstance(node, str) else frozenset()


def halo(node: Node) -> int:
    """How many pixels around a pixel an expression is computed from."""
    if not isinstance(node, Operation):
        return 0
    return max((halo(operand) for operand in node.operands), default=0) + (HALO if node.symbol in TERRAIN else 0)


def reserved(name: str) -> bool:
    """Whether a name already has a meaning in expressions, so that it cannot be a band's.

    Bands may have the names of functions of terrain: `slope: slope(height)`.
    """
    return name in PIXELWISE or keyword.iskeyword(name)


@dataclass(frozen=True)
class _Expression:
    """The text that is parsed, for messages, and the bands that it may name."""

    text: str
    bands: tuple[str, ...]

    @property
    def allowed(self) -> str:
        """What an expression may contain."""
        names = [name for name in self.bands if name.isidentifier() and not reserved(name)]
        listed = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
        return f"allowed are + - * / ** ( ), numbers, the functions {', '.join(FUNCTIONS)}, and the bands {listed}"

    def refused(self, position: int, part: str) -> ExpressionError:
        """The error for a part of the text, whose position counts from 0."""
        where = f"`{_shortened(part)}` at character {position + 1}"
        return ExpressionError(f"`{_shortened(self.text)}`: {where} is not allowed; {self.allowed}")

    def incomplete(self, position: int) -> ExpressionError:
        """The error for text that has no meaning from a position, counted from 0."""
        where = "empty" if not self.text else f"not complete arithmetic at character {min(position, len(self.text)) + 1}"
        return ExpressionError(f"`{_shortened(self.text)}` is {where}; {self.allowed}")

    def node(self, tree: ast.expr, depth: int) -> Node:
        """Convert one node of Python's syntax tree, if it is allowed."""
        if depth > DEEPEST:
            raise ExpressionError(f"has more than {DEEPEST} operations inside each other; split it over several bands")
        if isinstance(tree, ast.Constant) and type(tree.value) in (int, float):
            return self._number(tree)
        if isinstance(tree, ast.Name):
            if tree.id not in self.bands:
                raise self.refused(tree.col_offset, tree.id)
            return tree.id
        if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub):
            return Operation("negative", (self.node(tree.operand, depth + 1),))
        if isinstance(tree, ast.BinOp):
            return self._binary(tree, depth)
        if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and not tree.keywords:
            return self._call(tree, tree.func.id, depth)
        raise self.refused(tree.col_offset, ast.get_source_segment(self.text, tree) or self.text)

    def _call(self, tree: ast.Call, name: str, depth: int) -> Node:
        if name not in FUNCTIONS:
            raise self.refused(tree.col_offset, name)
        if len(tree.args) != FUNCTIONS[name]:
            takes = f"{FUNCTIONS[name]} value{'s' if FUNCTIONS[name] > 1 else ''}"
            raise ExpressionError(
                f"`{_shortened(self.text)}`: `{name}` at character {tree.col_offset + 1} takes {takes}, not {len(tree.args)}"
            )
        operation = Operation(name, tuple(self.node(value, depth + 1) for value in tree.args))
        if name in TERRAIN and (halo(operation) > HALO or not used(operation)):
            raise ExpressionError(
                f"`{_shortened(self.text)}`: `{name}` at character {tree.col_offset + 1} takes heights: the name of a band, "
                f"or arithmetic on bands without {', '.join(TERRAIN)}"
            )
        return operation

    def _number(self, tree: ast.Constant) -> float:
        try:
            number = float(tree.value)  # type: ignore[arg-type]  # checked by the caller
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self.refused(tree.col_offset, self.text[tree.col_offset : tree.end_col_offset])
        return number

    def _binary(self, tree: ast.BinOp, depth: int) -> Node:
        if type(tree.op) not in OPERATORS:
            between = self.text[tree.left.end_col_offset : tree.right.col_offset]
            start = len(between) - len(between.lstrip(" )"))
            raise self.refused((tree.left.end_col_offset or 0) + start, between.strip(" ()"))
        operands = self.node(tree.left, depth + 1), self.node(tree.right, depth + 1)
        return Operation(OPERATORS[type(tree.op)], operands)


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
