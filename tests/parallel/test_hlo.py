"""Reading HLO: sizes of shapes, and how often loops turn."""

import pytest

from nova_jax.parallel import hlo

LOOP = """
%body (state: (s32[], f32[4])) -> (s32[], f32[4]) {
  %state = (s32[]{:T(128)}, f32[4]{0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %x = f32[4]{0} get-tuple-element(%state), index=1
  %sine = f32[4]{0} sine(%x)
  ROOT %out = (s32[], f32[4]{0}) tuple(%next, %sine)
}

%condition (state: (s32[], f32[4])) -> pred[] {
  %state = (s32[], f32[4]{0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %end = s32[] constant(9)
  ROOT %less = pred[] compare(%i, %end), direction=LT
}

ENTRY %main (x: f32[4]) -> (s32[], f32[4]) {
  %x = f32[4]{0} parameter(0)
  %start = s32[] constant(2)
  %copied = s32[]{:T(128)} copy(%start)
  %in = (s32[], f32[4]{0}) tuple(%copied, %x)
  ROOT %loop = (s32[], f32[4]{0}) while(%in), condition=%condition, body=%body
}
"""


def times(text):
    return {run.instruction.name: run.times for run in hlo.walk(hlo.parse(text))}


def test_a_loop_turns_as_often_as_the_compiler_says_or_as_its_counter_is_compared():
    assert times(LOOP)["sine"] == 7
    said = LOOP.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"5"}}')
    assert times(said)["sine"] == 5
    assert times(LOOP.replace("constant(1)", "constant(3)"))["sine"] == 3


@pytest.mark.parametrize(
    "change", [("direction=LT", "direction=NE"), ("add(", "multiply("), ("tuple(%copied", "sort(%copied")]
)
def test_other_loops_turn_an_unknown_number_of_times(change):
    assert times(LOOP.replace(*change))["sine"] is None


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ("f32[2,3]{1,0}", [24]),
        ("(bf16[8,128]{1,0:T(8,128)(2,1)}, /*index=1*/pred[], s4[5]{0}, token[])", [2048, 1, 5, 0]),
        ("f8e4m3fn[16]", [16]),
        ("c64[2]", [16]),
    ],
)
def test_bytes_of_shapes(shape, sizes):
    assert hlo.sizes(shape) == sizes
