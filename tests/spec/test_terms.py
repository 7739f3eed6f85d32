"""The grammar of a term: what it accepts, what it refuses, and that it never does anything else."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recdistill.spec.terms import ALL, Call, Name, ParsedTerm, TermSyntaxError, parse_term

bce = Call("bce", (Name(("student", "logit")), Name(("label",))))

ACCEPTED = {
    "bce(student.logit, label)": ParsedTerm((bce,)),
    "  bce(student.logit,\n   label)  ": ParsedTerm((bce,)),
    "bce(student.logit, label) * step(1, 0.1, at=200)": ParsedTerm((bce, Call("step", (1, 0.1), {"at": 200}))),
    "0.5 * bce(student.logit, label) * -2": ParsedTerm((0.5, bce, -2)),
    "2 * (3 * f(x))": ParsedTerm((2, 3, Call("f", (Name(("x",)),)))),
    "f()": ParsedTerm((Call("f"),)),
    "f(g(h()))": ParsedTerm((Call("f", (Call("g", (Call("h"),)),)),)),
    "f(student.hidden[-1])": ParsedTerm((Call("f", (Name(("student", "hidden", -1)),)),)),
    "f(student.hidden[0].x[2])": ParsedTerm((Call("f", (Name(("student", "hidden", 0, "x", 2)),)),)),
    "f(teacher[:].logit)": ParsedTerm((Call("f", (Name(("teacher", ALL, "logit")),)),)),
    "f(x, 1, -1, 1.5, -0.0, 1e-3, 'text', k='a', n=g(y))": ParsedTerm(
        (Call("f", (Name(("x",)), 1, -1, 1.5, -0.0, 1e-3, "text"), {"k": "a", "n": Call("g", (Name(("y",)),))}),)
    ),
    'f("it\'s", "\\n")': ParsedTerm((Call("f", ("it's", "\n")),)),
    "bce(student.logit, label).rows(present(dwell_ms))": ParsedTerm((bce,), Call("present", (Name(("dwell_ms",)),))),
    "f(x).rows(equals(scenario, 3)) * 2": ParsedTerm(
        (Call("f", (Name(("x",)),)), 2), Call("equals", (Name(("scenario",)), 3))
    ),
    "2 * f(x).rows(s)": ParsedTerm((2, Call("f", (Name(("x",)),))), Name(("s",))),
    "(2 * f(x)).rows(s)": ParsedTerm((2, Call("f", (Name(("x",)),))), Name(("s",))),
    "f(rows)": ParsedTerm((Call("f", (Name(("rows",)),)),)),
    "f(student.rows)": ParsedTerm((Call("f", (Name(("student", "rows")),)),)),
}


@pytest.mark.parametrize(("text", "tree"), ACCEPTED.items())
def test_a_term_of_the_grammar_becomes_its_tree(text, tree):
    assert parse_term(text) == tree


def test_minus_zero_and_the_kind_of_a_number_survive():
    negative, whole = parse_term("f(-0.0, 2)").factors[0].args
    assert str(negative) == "-0.0"
    assert isinstance(whole, int)


REFUSED = {
    "empty": ("   ", "the term is empty"),
    "sum": ("f(x) + g(x)", "'f(x) + g(x)' is an expression; write a call such as equals(scenario, 3), or use Python"),
    "difference": ("f(x) - 1", "is an expression"),
    "quotient": ("f(x) / 2", "is an expression"),
    "power": ("f(x) ** 2", "is an expression"),
    "matrix product": ("f(x) @ g(x)", "is an expression"),
    "comparison": ("f(x == 3)", "'x == 3' is an expression"),
    "chained comparison": ("f(1 < x < 3)", "is an expression"),
    "and": ("f(x and y)", "is an expression"),
    "not": ("f(not x)", "'not x' is not allowed"),
    "minus of a name": ("f(-x)", "'-x' is not allowed"),
    "plus": ("f(+1)", "'+1' is not allowed"),
    "double minus": ("--1 * f(x)", "'--1' is not allowed"),
    "inverse": ("f(~1)", "'~1' is not allowed"),
    "true": ("f(True)", "True is not allowed"),
    "minus true": ("f(-True)", "'-True' is not allowed"),
    "none": ("f(None)", "'None' is not allowed"),
    "ellipsis": ("f(...)", "'...' is not allowed"),
    "bytes": ("f(b'x')", "is not allowed"),
    "imaginary": ("f(1j)", "is not allowed"),
    "formatted text": ("f(f'{x}')", "is not allowed"),
    "list": ("f([1])", "'[1]' is not allowed"),
    "tuple": ("f((1, 2))", "'(1, 2)' is not allowed"),
    "two terms": ("f(x), g(x)", "is not allowed"),
    "set": ("f({1})", "is not allowed"),
    "mapping": ("f({})", "is not allowed"),
    "comprehension": ("f(x for x in y)", "is not allowed"),
    "lambda": ("lambda: f(x)", "is not allowed"),
    "condition": ("f(x) if y else g(x)", "is not allowed"),
    "walrus": ("f(y := 1)", "is not allowed"),
    "await": ("await f(x)", "is not allowed"),
    "star": ("f(*x)", "'*x' is not allowed"),
    "two stars": ("f(**x)", "** is not allowed"),
    "an argument given twice": ("f(at=1, at=2)", "at is given twice to f"),
    "attribute call": ("student.logit(x)", "'student.logit' cannot be called; call a plain word"),
    "call of a call": ("f(x)(y)", "'f(x)' cannot be called"),
    "call of an item": ("f[0](x)", "'f[0]' cannot be called"),
    "import": ("__import__('os').system('true')", "cannot be called"),
    "attribute of a call": ("f(g(x).y)", "'g(x)' is not a name"),
    "item of a call": ("f(g(x)[0])", "'g(x)' is not a name"),
    "attribute of a text": ("f('a'.b)", "\"'a'\" is not a name"),
    "slice": ("f(x[1:2])", "'x[1:2]' is not a name; an index is one integer or [:]"),
    "step": ("f(x[::2])", "is not a name"),
    "two indices": ("f(x[0, 1])", "is not a name"),
    "name as index": ("f(x[y])", "is not a name"),
    "float as index": ("f(x[1.5])", "is not a name"),
    "text as index": ("f(x['y'])", "is not a name"),
    "true as index": ("f(x[True])", "is not a name"),
    "minus true as index": ("f(x[-True])", "is not a name"),
    "a name as factor": ("f(x) * label", "'label' is neither a number nor a call"),
    "a text as factor": ("'f' * f(x)", "is neither a number nor a call"),
    "only a name": ("student.logit", "is neither a number nor a call"),
    "rows without selector": ("f(x).rows()", ".rows() takes one selector"),
    "rows with two selectors": ("f(x).rows(a, b)", ".rows() takes one selector"),
    "rows with a keyword": ("f(x).rows(by=a)", ".rows() takes one selector"),
    "rows twice": ("f(x).rows(a).rows(b)", ".rows() may be given once"),
    "rows in two factors": ("f(x).rows(a) * g(x).rows(b)", ".rows() may be given once"),
    "rows inside a call": ("f(x.rows(a))", "'x.rows' cannot be called"),
    "other attribute call": ("f(x).mean(a)", "'f(x).mean' cannot be called"),
    "infinite number": ("1e999 * f(x)", "a number is larger than 1e+300"),
    "long integer": ("f(0x" + "f" * 5000 + ")", "a number is larger than 1e+300"),
    "long index": ("f(x[0x" + "f" * 5000 + "])", "a number is larger than 1e+300"),
    "open bracket": ("f(x", "is not a term: '(' was never closed"),
    "brackets that are not its own": ("f(x)) * (g(x)", "closes a bracket that it has not opened"),
    "brackets over lines": ("f(x)\n) * (g(x)", "closes a bracket that it has not opened"),
    "nothing between factors": ("f(x) g(x)", "is not a term: invalid syntax"),
    "null character": ("f(x)\x00", "is not a term: source code string cannot contain null bytes"),
    "lone surrogate": ("f('\ud800')", "is not a term"),
    "positional after keyword": ("f(a=1, b)", "is not a term: positional argument follows keyword argument"),
    "deep nesting": ("f(" * 90 + "x" + ")" * 90 + " * 1" * 2000, "is not a term"),
    "very deep nesting": ("-" * 100_000 + "1", "is not a term"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_anything_else_is_refused_with_its_reason(text, message):
    with pytest.raises(TermSyntaxError) as caught:
        parse_term(text)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["sum", "true", "slice", "rows twice", "open bracket", "star"])
def test_a_refusal_quotes_the_whole_term(name):
    text = REFUSED[name][0]
    with pytest.raises(TermSyntaxError) as caught:
        parse_term(text)
    assert str(caught.value).startswith(repr(text))


def test_the_same_term_written_in_several_ways_is_one_tree():
    forms = [
        "2 * f(x).rows(s)",
        "2 * (f(x).rows(s))",
        "(2 * f(x)).rows(s)",
        "2*f(x) .rows( s )",
        "2 * f(x).rows(s) # why",
    ]
    assert {str(parse_term(form)) for form in forms} == {"(2 * f(x)).rows(s)"}


# Round trips

WORDS = [
    "f",
    "bce",
    "student",
    "teacher_2",
    "label",
    "rows",
    "at",
    "_",
    "X9",
    "é",
    "größe",
    "日本",
    "lambda_",
    "inf",
    "nan",
]
words = st.sampled_from(WORDS)
numbers = st.integers(-(10**30), 10**30) | st.floats(-1e299, 1e299, allow_nan=False)
indices = st.integers(-9, 9) | st.just(ALL)
names = st.builds(lambda first, rest: Name((first, *rest)), words, st.lists(words | indices, max_size=4))
texts = st.text(st.characters(codec="utf-8"), max_size=8)


def calls(arguments):
    return st.builds(
        lambda f, args, kwargs: Call(f, tuple(args), kwargs),
        words,
        st.lists(arguments, max_size=3),
        st.dictionaries(words, arguments, max_size=2),
    )


arguments = st.recursive(names | numbers | texts, calls, max_leaves=8)
terms = st.builds(
    ParsedTerm, st.lists(numbers | calls(arguments), min_size=1, max_size=4).map(tuple), st.none() | arguments
)


@settings(max_examples=150)
@given(terms)
@example(ParsedTerm((Call("f"), -2), Name(("s",))))
@example(ParsedTerm((-2,), Name(("s",))))
@example(ParsedTerm((0.1,), "'\"\\"))
@example(ParsedTerm((Call("f", ("'", '"', "\\", "\n", "\x00", "é")),)))
def test_every_tree_is_read_back_from_its_text(tree):
    text = str(tree)
    assert parse_term(text) == tree
    assert str(parse_term(text)) == text


# Noise

PIECES = [
    *(
        "bce",
        "student",
        "label",
        "rows",
        "step",
        "lambda",
        "if",
        "else",
        "for",
        "in",
        "not",
        "None",
        "True",
        "yield",
        "await",
    ),
    *(
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        ".",
        ",",
        ":",
        "*",
        "**",
        "=",
        "==",
        ":=",
        "-",
        "+",
        "/",
        "@",
        "<",
        "~",
        "'",
        '"',
        "\\",
    ),
    *(
        "0",
        "1",
        "0x",
        "1e9",
        ".5",
        "1_0",
        "01",
        "'a'",
        "f'{x}'",
        " ",
        "\n",
        "\t",
        "#",
        "\x00",
        "\x0c",
        "é",
        "\ud800",
        "\U0001f600",
    ),
]


@settings(max_examples=2000)
@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join) | st.text(max_size=20))
def test_no_text_raises_anything_but_a_syntax_error(text):
    try:
        tree = parse_term(text)
    except TermSyntaxError as error:
        assert str(error)
    else:
        assert parse_term(str(tree)) == tree


@settings(max_examples=300)
@given(st.sampled_from(list(ACCEPTED)), st.data())
def test_a_damaged_term_is_refused_or_read_as_something_that_can_be_shown(text, data):
    place = data.draw(st.integers(0, len(text)))
    piece = data.draw(st.sampled_from(PIECES))
    end = data.draw(st.integers(place, min(len(text), place + 3)))
    try:
        tree = parse_term(text[:place] + piece + text[end:])
    except TermSyntaxError:
        return
    assert parse_term(str(tree)) == tree
