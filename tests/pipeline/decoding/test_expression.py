"""Expressions are arithmetic on band names; anything else is refused with its position and what is allowed."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.decoding.expression import DEEPEST, LONGEST, ExpressionError, Operation, halo, parse, reserved, used

BANDS = ("blue", "red", "nir", "B8A")


def message(text: str) -> str:
    with pytest.raises(ExpressionError) as caught:
        parse(text, BANDS)
    return str(caught.value)


def test_operations_nest_as_in_arithmetic() -> None:
    difference, total = Operation("-", ("nir", "red")), Operation("+", ("nir", "red"))
    assert parse("(nir - red) / (nir + red)", BANDS) == Operation("/", (difference, total))
    assert parse("-nir ** 2", BANDS) == Operation("negative", (Operation("**", ("nir", 2.0)),))
    assert parse("maximum(sqrt(B8A), 1e-3)", BANDS) == Operation("maximum", (Operation("sqrt", ("B8A",)), 0.001))
    assert parse("nir\n  +\n  red", BANDS) == total, "line breaks of YAML"
    assert used(parse("nir * 2 - abs(red / nir)", BANDS)) == {"nir", "red"}


@pytest.mark.parametrize(
    ("text", "part", "position"),
    [
        ("nir // red", "//", 5), ("(nir) % (red)", "%", 7), ("nir @ red", "@", 5), ("nir < red", "<", 5),
        ("nir.real", "nir.real", 1), ("1 + nir[0]", "[", 8), ("__import__('os')", "'", 12), ("open(nir)", "open", 1),
        ("exec(nir)", "exec", 1), ("nir if red else blue", "nir if red else blue", 1), ("nir, red", "nir, red", 1),
        ("sqrt(*nir)", "*nir", 6), ("lambda: nir", ":", 7), ("nir and red", "nir and red", 1), ("not nir", "not nir", 1),
        ("(yield)", "yield", 2), ("await nir", "await nir", 1), ("+nir", "+nir", 1), ("True * nir", "True", 1),
        ("1j * nir", "1j", 1), ("1e999 * nir", "1e999", 1), ("2 * green", "green", 5), ("nir(red)", "nir", 1),
        ("sqrt", "sqrt", 1), ("sqrt(red)(nir)", "sqrt(red)(nir)", 1), ("nir # red", "#", 5), ("nïr", "ï", 2),
        ("(a for a in nir)", "(a for a in nir)", 1), ("nir = red", "=", 5), ("'nir'", "'", 1), ("f'{nir}'", "'", 2),
    ],
)  # fmt: skip  # a table
def test_anything_else_is_refused_with_its_position_and_what_is_allowed(text: str, part: str, position: int) -> None:
    found = message(text)
    assert f"`{text}`: `{part}` at character {position} is not allowed; allowed are + - * / ** ( ), numbers, " in found
    functions = "the functions sqrt, log, abs, minimum, maximum, slope, northness, eastness, "
    assert found.endswith(f"{functions}and the bands blue, red, nir, B8A")


@pytest.mark.parametrize(("text", "position"), [("nir -", 6), ("nir red", 5), ("(nir", 1), ("nir * ) red", 7), ("2nir", 1)])
def test_incomplete_arithmetic_is_refused_with_its_position(text: str, position: int) -> None:
    assert f"`{text}` is not complete arithmetic at character {position}; allowed are" in message(text)


def test_functions_have_their_number_of_values_and_an_expression_names_a_band() -> None:
    assert message("sqrt(nir, red)") == "`sqrt(nir, red)`: `sqrt` at character 1 takes 1 value, not 2"
    assert message("1 + minimum(nir)") == "`1 + minimum(nir)`: `minimum` at character 5 takes 2 values, not 1"
    assert "`1 + 2` names no band" in message("1 + 2")
    assert "`` is empty" in message("  ")


def test_length_and_nesting_are_limited() -> None:
    parse(" + ".join(["nir"] * 128), BANDS)
    assert message("x" * (LONGEST + 1)) == "is 2,001 characters long; at most 2,000 are allowed"
    for deep in ("-" * DEEPEST + "nir", "+".join(["nir"] * (DEEPEST + 1)), "-" * (LONGEST - 3) + "nir"):
        assert message(deep) == "has more than 150 operations inside each other; split it over several bands"
    assert "is not complete arithmetic" in message("(" * 300 + "nir" + ")" * 300), "Python's limit of parentheses"
    assert len(message("9" * (LONGEST - 4) + "*nir")) < 500, "long parts are shortened"


@given(st.text(alphabet="nirredabslog2.+-*/() ,_e0[]'\"=<:\n", max_size=40))
def test_any_text_is_an_expression_or_refused(text: str) -> None:
    with contextlib.suppress(ExpressionError):
        assert used(parse(text, BANDS)) <= {*BANDS}


def test_functions_and_words_of_python_cannot_be_names() -> None:
    names = ("sqrt", "maximum", "lambda", "None", "red", "B8A", "ndvi", "slope", "northness")
    assert [name for name in names if reserved(name)] == ["sqrt", "maximum", "lambda", "None"]


def test_functions_of_terrain_may_have_the_name_of_a_band_and_take_arithmetic_but_not_each_other() -> None:
    assert parse("slope + slope(nir * 2)", ("slope", "nir")) == Operation(
        "+", ("slope", Operation("slope", (Operation("*", ("nir", 2.0)),)))
    )
    assert [halo(parse(text, BANDS)) for text in ("nir", "nir + 1", "2 * slope(nir)", "-eastness(abs(nir))")] == [0, 0, 1, 1]
    for text, position in (("slope(northness(nir))", 1), ("nir + slope(2)", 7), ("slope(1 + slope(nir))", 1)):
        name = f"`{text}`: `slope` at character {position} takes heights"
        assert message(text) == f"{name}: the name of a band, or arithmetic on bands without slope, northness, eastness"
    assert "`slope` at character 1 is not allowed" in message("slope")
