"""Conditions, selectors, values and placeholders."""

from __future__ import annotations

from typing import Any

import pytest

from tests.lab.kfp.kfp_server import placeholders, values
from tests.lab.kfp.kfp_server.conditions import ExpressionError, condition, evaluate, select

GIVEN = {"name": "heads", "score": 5.0, "count": 3, "flag": True, "empty": ""}


def written(expression: str) -> str:
    """An expression with `$name` as the compiler writes a parameter."""
    for name in (*GIVEN, "missing"):
        expression = expression.replace(f"${name}", f"inputs.parameter_values['{name}']")
    return expression


@pytest.mark.parametrize(
    ("expression", "holds"),
    [
        ("$name == 'heads'", True),
        ("$name != \"heads\"", False),
        ("$score > 1.0", True),
        ("$score >= 5", True),
        ("$count < 3", False),
        ("$count == 3.0", True),
        ("$flag == true", True),
        ("!($flag == true)", False),
        ("!($name == 'tails') && $count > 2", True),
        ("$name == 'tails' || $count > 2", True),
        ("$name == 'tails' && $missing > 2", False),
        ("$flag == true || $missing > 2", True),
        ("string($count) == '3'", True),
        ("string($flag) == 'true'", True),
        ("int($count) < 4 && double($count) < 3.5", True),
        ("$name == $count", False),
        ("'n' in parseJson('{\"n\": 1}')", True),
        ("-1 < $count ? true : false", True),
        ("parseJson('{\"a\": {\"b\": [1, 2]}}').a[\"b\"][1] == 2", True),
        ("'it\\'s' == \"it's\"", True),
    ],
)  # fmt: skip
def test_conditions(expression: str, holds: bool) -> None:
    """What the compiler writes, and what is left out of `&&` and `||`."""
    assert condition(written(expression), GIVEN) is holds


@pytest.mark.parametrize(
    "expression",
    [
        "$name > 1",
        "$count",
        "$missing == 1",
        "$count ==",
        "$count == 1)",
        "nothing(1) == 1",
        "$count = 1",
        "$flag && 1",
    ],
)
def test_conditions_that_are_none(expression: str) -> None:
    """An error that says which expression."""
    with pytest.raises(ExpressionError):
        condition(written(expression), GIVEN)


@pytest.mark.parametrize(
    ("expression", "value", "part"),
    [
        ('parseJson(string_value)["n"]', '{"n": 1}', 1),
        ('parseJson(string_value)["n"]', {"n": [1]}, [1]),
        ('parseJson(string_value)["a"]["b"]', {"a": {"b": "c"}}, "c"),
        ("struct_value.n", {"n": 2}, 2),
        ("number_value", 4.5, 4.5),
    ],
)
def test_selectors(expression: str, value: Any, part: Any) -> None:
    """Parts of texts and of structures."""
    assert select(expression, value) == part


def test_selector_of_what_is_not_there() -> None:
    """An error, not null."""
    with pytest.raises(ExpressionError, match="'m'"):
        select('parseJson(string_value)["m"]', {"n": 1})
    assert evaluate("1.5", {}) == 1.5


@pytest.mark.parametrize(
    ("content", "kind", "value"),
    [
        ("7\n", "NUMBER_INTEGER", 7),
        ("7.5", "NUMBER_DOUBLE", 7.5),
        ("True", "BOOLEAN", True),
        ("[1, 2]", "LIST", [1, 2]),
        ('{"a": 1}', "STRUCT", {"a": 1}),
        (" a\n", "STRING", " a\n"),
    ],
)
def test_output_files(content: str, kind: str, value: Any) -> None:
    """Output parameters by their types; texts as they are."""
    assert values.from_text(content, kind) == value


@pytest.mark.parametrize(
    ("content", "kind"),
    [("7.5", "NUMBER_INTEGER"), ("", "NUMBER_DOUBLE"), ("yes", "BOOLEAN"), ("{}", "LIST"), ("[", "STRUCT")],
)
def test_output_files_that_do_not_fit(content: str, kind: str) -> None:
    """Errors."""
    with pytest.raises(ValueError, match=r"."):
        values.from_text(content, kind)


def test_values_as_text() -> None:
    """Numbers without a fraction are written as such, structures as JSON."""
    assert [values.text(value) for value in (10.0, 0.5, True, None, [1.0, "ä"], {"a": 2.0})] == [
        "10", "0.5", "true", "", '[1,"ä"]', '{"a":2}',
    ]  # fmt: skip
    assert values.typed("x", 3.0, "STRING") == "3"
    with pytest.raises(ValueError, match="expect BOOLEAN, got number"):
        values.typed("x", 1, "BOOLEAN")


ARTIFACT = {"name": "12", "uri": "minio://bucket/key/data", "type": {"schemaTitle": "system.Dataset"}}
OUTPUTS = {
    "parameters": {"rows": "/tmp/kfp/outputs/rows"},
    "artifacts": {"model": {"name": "model", "uri": "s3://bucket/key/model"}},
    "file": "/minio/bucket/key/output_metadata.json",
}


def resolved(*arguments: str, defaults: dict[str, Any] | None = None, **parameters: Any) -> list[str]:
    """A command line with these inputs."""
    inputs = {"parameters": parameters, "artifacts": {"data": [ARTIFACT]}}
    return placeholders.resolve(list(arguments), inputs, defaults or {}, OUTPUTS)


def test_placeholders() -> None:
    """Inputs and outputs, whole and inside of a longer text."""
    assert resolved(
        "{{$.inputs.parameters['n']}}",
        "x-{{$.inputs.parameters['n']}}",
        "{{$.inputs.artifacts['data'].path}}:{{$.inputs.artifacts['data'].uri}}",
        "{{$.outputs.artifacts['model'].path}}:{{$.outputs.artifacts['model'].uri}}",
        "{{$.outputs.parameters['rows'].output_file}}",
        "{{$.json_escape[1]}}",
        n=3.0,
    ) == [
        "3", "x-3", "/minio/bucket/key/data:minio://bucket/key/data", "/s3/bucket/key/model:s3://bucket/key/model",
        "/tmp/kfp/outputs/rows", "{{$.json_escape[1]}}",
    ]  # fmt: skip


def test_executor_input() -> None:
    """The JSON that lightweight components read; nothing empty in it."""
    (text,) = resolved("{{$}}", n=3.0, text='a "b" $(HOME)')
    assert text == (
        '{"inputs":{"parameterValues":{"n":3,"text":"a \\"b\\" $$(HOME)"},"artifacts":{"data":{"artifacts":[{"name":"12",'
        '"uri":"minio://bucket/key/data","type":{"schemaTitle":"system.Dataset"}}]}}},"outputs":{"parameters":{"rows":'
        '{"outputFile":"/tmp/kfp/outputs/rows"}},"artifacts":{"model":{"artifacts":[{"name":"model","uri":"s3://bucket/key/model"}]}},'
        '"outputFile":"/minio/bucket/key/output_metadata.json"}}'
    )


def test_channels_inside_of_values() -> None:
    """A constant made of parameters of the pipeline holds their placeholders: they are filled last."""
    channel = "{{$.inputs.parameters['pipelinechannel--who']}}"
    given: dict[str, Any] = {"msg": f"hello {channel}", "pipelinechannel--who": "you"}
    assert resolved("{{$.inputs.parameters['msg']}}", **given) == ["hello you"]
    assert '"msg":"hello you"' in resolved("{{$}}", **given)[0]


def test_if_present() -> None:
    """By what the task is given, not by the component's default; null is nothing."""
    clause = '{"IfPresent": {"InputName": "n", "Then": ["--n", "{{$.inputs.parameters[\'n\']}}"], "Else": ["--no"]}}'
    without = '{"IfPresent": {"InputName": "n", "Then": "--yes"}}'
    assert resolved(clause, without, n=1) == ["--n", "1", "--yes"]
    assert resolved(clause, without, defaults={"n": 1}) == ["--no"]
    assert resolved(clause, without, n=None) == ["--no"]
    with pytest.raises(ValueError, match="'n'"):
        resolved('{"IfPresent": {"InputName": "n", "Then": [{"Concat": ["a"]}]}}', n=1)


def test_concat_is_left_as_the_real_server_leaves_it() -> None:
    """Its backend knows no Concat: the program sees the JSON, with parameters filled in."""
    assert resolved('{"Concat": ["a", "{{$.inputs.parameters[\'n\']}}"]}', n=1) == ['{"Concat": ["a", "1"]}']


def test_a_parameter_that_is_missing() -> None:
    """An error with its name."""
    with pytest.raises(ValueError, match="'m'"):
        resolved("{{$.inputs.parameters['m']}}")
    with pytest.raises(ValueError, match="'m'"):
        placeholders.parameter("{{$.inputs.parameters['m']}}", {})
    assert placeholders.parameter("{{$.inputs.parameters['m']}}", {"m": "2Gi"}) == "2Gi"
