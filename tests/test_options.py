"""The table of settings: every place that shows one is made from it. Nothing here names a setting by hand."""

import math
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import gradio as gr
import pytest
from gradio.utils import get_function_description, get_function_params

from biogpt.cli import build_parser
from biogpt.generation.options import ON_PAGE, SETTINGS, Box, GenerationOptions, Setting, Slider
from biogpt.serving.shelf import Shelf
from biogpt.ui.links import decode, encode
from biogpt.ui.write_tab import write_tab
from biogpt.ui.writing import Writer, _refusal

ROWS = pytest.mark.parametrize("row", SETTINGS, ids=lambda row: row.name)
SHOWN = pytest.mark.parametrize("row", ON_PAGE, ids=lambda row: row.name)


def no_shelf() -> Shelf:
    return Shelf("none", lambda name: pytest.fail(f"{name} is loaded"))


@pytest.fixture(scope="module")
def controls() -> dict[str, Any]:
    """Of the page, by their names in links."""
    with gr.Blocks():
        return write_tab(no_shelf(), gr.State("none")).controls


@pytest.fixture(scope="module")
def endpoint() -> Any:
    return Writer(no_shelf()).endpoint()


def other_value(row: Setting) -> Any:
    """One that the row allows, and that is not its default."""
    if row.is_list:
        return ["END"]
    if row.least is None:
        return {bool: not row.default, bool | str: "never"}[row.type]
    if row.default is None:
        return int(row.least)
    return row.type(row.default + 1 if row.default < row.most else row.least)


def test_the_table_needs_no_torch() -> None:
    script = "import sys, biogpt.generation.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_no_two_settings_share_a_name_and_each_is_somewhere_or_for_python_alone() -> None:
    names = [row.control.link for row in ON_PAGE if row.control is not None]
    assert len(set(names)) == len(names)
    assert {row.name for row in ON_PAGE} == {row.name for row in SETTINGS if row.control is not None}
    assert [row.name for row in SETTINGS if not (row.control or row.command or row.endpoint)], "two are"


@ROWS
def test_a_row_is_whole(row: Setting) -> None:
    assert row.help[0].isupper() or row.help[0].isdigit()
    assert row.help.endswith(".")
    assert "\n" not in row.help
    assert f"{row.name}: {row.help}" in str(GenerationOptions.__doc__)
    row.check(row.default)
    row.check(row.start)
    if isinstance(row.control, Slider):
        assert row.least is not None
        assert row.least <= row.control.least <= row.start <= row.control.most <= row.most
    elif row.control is not None:
        assert row.default in (None, ())


@ROWS
def test_what_is_out_of_range_is_refused_in_python(row: Setting) -> None:
    if row.least is None:
        return
    outside = [row.least - 1] if row.most == math.inf else [row.least - 1, row.most + 1]
    for value in [*outside, "1", True, math.nan]:
        with pytest.raises(ValueError, match=f"^{row.name} is {value!r}; expected a (whole )?number"):
            GenerationOptions(**{row.name: value})


@ROWS
def test_the_command_line_has_a_flag_for_it_or_does_not_want_one(row: Setting) -> None:
    words = ["generate", "text"]
    chosen = vars(build_parser(words).parse_args(words))
    assert (row.name in chosen) == row.command
    if row.command:
        assert (tuple(chosen[row.name]) if row.is_list else chosen[row.name]) == row.default
        value = other_value(row)
        flag = "--" + row.name.replace("_", "-")
        given = getattr(
            build_parser(words).parse_args([*words, flag, *map(str, value if row.is_list else [value])]),
            row.name,
        )
        assert (given, type(given)) == (value, type(value))


def test_the_help_of_the_command_line_is_that_of_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser(["generate"]).parse_args(["generate", "--help"])
    shown = " ".join(capsys.readouterr().out.split()).lower()
    for row in SETTINGS:
        assert (row.help.lower().rstrip(".") in shown) == row.command, row.name


@SHOWN
def test_the_page_has_its_control(row: Setting, controls: dict[str, Any]) -> None:
    assert row.control is not None
    control = controls[row.control.link]
    assert control.label.startswith(row.control.label)
    assert control.info.endswith(row.help)
    if isinstance(row.control, Slider):
        assert (control.minimum, control.maximum, control.value) == (
            row.control.least,
            row.control.most,
            row.start,
        )
        assert control.precision == 0 if row.type is int else control.step == row.control.step
    else:
        assert isinstance(control, gr.Textbox)


def test_the_page_has_no_other_controls_and_hands_them_over_in_the_order_of_the_table(
    controls: dict[str, Any],
) -> None:
    assert list(controls) == ["text", *(row.control.link for row in ON_PAGE if row.control is not None)]


@SHOWN
def test_a_link_holds_it_within_its_bounds(row: Setting) -> None:
    assert row.control is not None
    name = row.control.link
    if isinstance(row.control, Box):
        fits, too_much = "1" * row.control.characters, "1" * (row.control.characters + 1)
        assert decode({name: fits}) == ({name: fits}, [])
        assert decode({name: too_much}) == ({}, [name])
        return
    for bound, beyond in ((row.control.least, -1), (row.control.most_in_links or row.control.most, 1)):
        query = dict([encode({name: row.type(bound)}).split("=")])
        found, ignored = decode(query)
        assert (found, ignored) == ({name: bound}, [])
        assert type(found[name]) is row.type
        assert decode({name: str(bound + beyond)}) == ({}, [name])
    assert (decode({name: "1.5"})[0] == {}) == (row.type is int or row.control.most < 1.5)


@SHOWN
def test_a_refusal_on_the_page_calls_it_as_the_page_does(row: Setting) -> None:
    assert row.control is not None
    said = _refusal(ValueError(f"{row.name} is 7; and {row.name}s is another word"))
    assert f"{row.control.label} is 7; and {row.name}s" in said


def test_the_endpoint_has_the_parameters_of_the_table_with_their_defaults_and_help(endpoint: Any) -> None:
    rows = [row for row in SETTINGS if row.endpoint]
    first, *parameters, last = get_function_params(endpoint)
    assert (first[0], last[0]) == ("prompt", "model")
    assert [name for name, *_ in parameters] == [row.name for row in rows]
    _, described, returned = get_function_description(endpoint)
    for row, (name, has_default, default, kind) in zip(rows, parameters, strict=True):
        assert has_default
        assert default == (None if row.is_list else row.start)
        assert kind == (list[str] | None if row.is_list else row.type)
        assert described[name] == row.help
    assert described["prompt"]
    assert described["model"]
    assert len(returned) == 2


def test_the_endpoint_hands_each_value_to_the_option_of_its_name(
    endpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row for row in SETTINGS if row.endpoint]
    given: list[Any] = []

    def keep(self: Writer, prompt: str, values: Any, model: str | None) -> Sequence[Any]:
        given.extend([prompt, values, model])
        return []

    monkeypatch.setattr(Writer, "generate", keep)
    values = [other_value(row) for row in rows]
    list(endpoint("a text", *values, "mini"))
    assert given == ["a text", {row.name: value for row, value in zip(rows, values, strict=True)}, "mini"]
