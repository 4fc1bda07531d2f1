"""The reader of kernels, on programs whose kernels and bytes can be counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from nova_jax.planning import program

F32 = 4


def compile_text(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().as_text()


def test_a_product_reads_both_matrices_and_writes_one():
    a, b = jnp.zeros((64, 32)), jnp.zeros((32, 16))
    (kernel,) = program.read(compile_text(jnp.matmul, a, b))
    assert (kernel.kind, kernel.times) == ("product", 1)
    assert (kernel.read, kernel.written) == ((64 * 32 + 32 * 16) * F32, 64 * 16 * F32)
    assert kernel.flops == 2 * 64 * 32 * 16


def test_a_loop_over_depth_reads_one_layer_of_its_weights_in_each_turn():
    weights, x = jnp.zeros((5, 64, 64)), jnp.zeros((128, 64))

    def stacked(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    kernels = program.read(compile_text(stacked, x, weights))
    assert program.flops(kernels) == 5 * 2 * 128 * 64 * 64
    slices = [k for k in kernels if k.times == 5 and k.read == k.written == 64 * 64 * F32]
    assert len(slices) <= 1, kernels
    assert max(k.read for k in kernels) <= (64 * 64 + 128 * 64) * F32


def test_a_loop_that_keeps_its_results_writes_one_layer_in_each_turn():
    x = jnp.zeros((128, 64))
    kept = lambda x: jax.lax.scan(lambda x, _: (x := jnp.sin(x), x), x, length=7)[1]  # noqa: E731
    kernels = [k for k in program.read(compile_text(kept, x)) if k.times == 7]
    assert kernels
    assert max(k.written for k in kernels) <= 2 * 128 * 64 * F32


FUSIONS = """
%sliced (p.0: f32[10,64], p.1: s32[]) -> f32[64] {
  %p.0 = f32[10,64]{1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = f32[1,64]{1,0} dynamic-slice(%p.0, %p.1, %zero), dynamic_slice_sizes={1,64}
  ROOT %view = f32[64]{0} bitcast(%slice)
}

%updated (p.0: f32[10,64], p.1: f32[64], p.2: s32[]) -> f32[10,64] {
  %p.0 = f32[10,64]{1,0} parameter(0)
  %p.1 = f32[64]{0} parameter(1)
  %row = f32[1,64]{1,0} bitcast(%p.1)
  %p.2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %new = f32[10,64]{1,0} dynamic-update-slice(%p.0, %row, %p.2, %zero)
}

%whole (p.0: f32[10,64], p.1: s32[]) -> f32[64] {
  %p.0 = f32[10,64]{1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = f32[1,64]{1,0} dynamic-slice(%p.0, %p.1, %zero), dynamic_slice_sizes={1,64}
  %sum = f32[64]{0} reduce(%p.0, %zero), dimensions={0}, to_apply=%add
  %view = f32[64]{0} bitcast(%slice)
  ROOT %add.0 = f32[64]{0} add(%sum, %view)
}

%body (arg: (s32[], f32[10,64], f32[64])) -> (s32[], f32[10,64], f32[64]) {
  %arg = (s32[], f32[10,64]{1,0}, f32[64]{0}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %stack = f32[10,64]{1,0} get-tuple-element(%arg), index=1
  %x = f32[64]{0} get-tuple-element(%arg), index=2
  %read = f32[64]{0} fusion(%stack, %i), kind=kLoop, calls=%sliced
  %write = f32[10,64]{1,0} fusion(%stack, %read, %i), kind=kLoop, calls=%updated, metadata={op_name="jit(f)/jvp(DiT)/blocks/while/body/mlp/tanh"}
  %all = f32[64]{0} fusion(%write, %i), kind=kLoop, calls=%whole
  ROOT %out = (s32[], f32[10,64]{1,0}, f32[64]{0}) tuple(%i, %write, %all)
}

%condition (arg: (s32[], f32[10,64], f32[64])) -> pred[] {
  %arg = (s32[], f32[10,64]{1,0}, f32[64]{0}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  ROOT %less = pred[] compare(%i, %i), direction=LT
}

ENTRY %main (a: f32[10,64], b: f32[64]) -> (s32[], f32[10,64], f32[64]) {
  %a = f32[10,64]{1,0} parameter(0)
  %b = f32[64]{0} parameter(1)
  %i = s32[] constant(0)
  %in = (s32[], f32[10,64]{1,0}, f32[64]{0}) tuple(%i, %a, %b)
  ROOT %loop = (s32[], f32[10,64]{1,0}, f32[64]{0}) while(%in), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"10"}}
}
"""  # noqa: E501


def test_slices_inside_fusions_count_as_slices_unless_the_rest_is_read_as_well():
    row, index = 64 * F32, 4
    read, write, whole = program.read(FUSIONS)
    assert (read.read, read.written, read.times) == (row + index, row, 10)
    assert (write.read, write.written) == (row + index, row)
    assert (whole.read, whole.written) == (10 * row + index, row)
    assert program.traffic([read, write, whole]) == 10 * (15 * row + 3 * index)
    assert program.count([read, write, whole]) == 30
    unknown = FUSIONS.replace("known_trip_count", "unknown")
    with pytest.raises(ValueError, match="a loop whose number of turns the compiler does not know"):
        program.read(unknown)


CALLS = """
%batched (p.0: f32[8,64,32], p.1: f32[8,32,16]) -> f32[8,64,16] {
  %p.0 = f32[8,64,32]{2,1,0} parameter(0)
  %p.1 = f32[8,32,16]{2,1,0} parameter(1)
  ROOT %conv = f32[8,64,16]{2,1,0} convolution(%p.0, %p.1), window={size=8 stride=7 pad=0_0 lhs_dilate=8}, dim_labels=0bf_0io->0bf
}

ENTRY %main (q: bf16[2,256,4,128], k: bf16[2,512,4,128], a: f32[8,64,32], b: f32[8,32,16]) -> bf16[2,256,4,128] {
  %q = bf16[2,256,4,128]{3,2,1,0} parameter(0)
  %k = bf16[2,512,4,128]{3,2,1,0} parameter(1)
  %a = f32[8,64,32]{2,1,0} parameter(2)
  %b = f32[8,32,16]{2,1,0:T(8,128)S(1)} parameter(3)
  %flash = (bf16[2,256,4,128]{3,1,2,0}, u8[1000]{0}) custom-call(%q, %k, %k), custom_call_target="__cudnn$fmhaSoftmax", backend_config={"cudnn_fmha_backend_config":{"intermediate_tensor_shape":{"element_type":"BF16","dimensions":["2","4","256","512"],"tuple_shapes":[]}}}
  %out = bf16[2,256,4,128]{3,1,2,0} get-tuple-element(%flash), index=0
  %matrix = bf16[512,512]{1,0} bitcast(%q)
  %gemm = (bf16[512,64]{1,0}, s8[4096]{0}) custom-call(%matrix, %matrix), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  %fused = f32[8,64,16]{2,1,0} fusion(%a, %b), kind=kOutput, calls=%batched
  ROOT %copy = bf16[2,256,4,128]{3,2,1,0} copy(%out)
}
"""  # noqa: E501


def test_calls_of_libraries_and_products_inside_fusions_are_known_with_their_flops():
    flash, gemm, fused, copy = program.read(CALLS)
    tokens = 2 * 4 * 128 * 2  # bytes of one token of all samples
    assert (flash.kind, flash.flops, flash.written) == ("attention", 4 * 2 * 4 * 256 * 512 * 128, 256 * tokens)
    assert flash.read == (256 + 2 * 512) * tokens
    assert (gemm.kind, gemm.flops, gemm.written) == ("product", 2 * 512 * 64 * 512, 512 * 64 * 2)
    assert (fused.kind, fused.flops, fused.read) == ("product", 2 * 8 * 64 * 32 * 16, 8 * 64 * 32 * F32)
    assert (copy.kind, copy.flops, copy.traffic) == ("other", 0, 2 * 256 * tokens)


SPLASH = """
ENTRY %main (m: s8[1,2,1], q: bf16[2,4,1024,128], k: bf16[2,4,512,128]) -> bf16[2,4,1024,128] {
  %m = s8[1,2,1]{2,1,0} parameter(0)
  %q = bf16[2,4,1024,128]{3,2,1,0} parameter(1)
  %k = bf16[2,4,512,128]{3,2,1,0} parameter(2)
  %splash_mha_fwd_residuals.1 = bf16[2,4,1024,128]{3,2,1,0:T(8,128)S(1)} custom-call(%m, %q, %k, %k), custom_call_target="tpu_custom_call"
  ROOT %splash_mha_dkv.2 = bf16[2,4,512,128]{3,2,1,0} custom-call(%m, %q, %k, %k), custom_call_target="tpu_custom_call"
}
"""  # noqa: E501


def test_flash_attention_of_pallas_is_known_by_its_name():
    forward, backward = program.read(SPLASH)
    product = 2 * 2 * 4 * 1024 * 512 * 128
    assert (forward.kind, forward.flops, forward.keys, forward.is_backward) == ("attention", 2 * product, 512, False)
    assert (backward.kind, backward.flops, backward.keys, backward.is_backward) == ("attention", 4 * product, 512, True)
    assert forward.written == 0


def test_kernels_are_grouped_by_pass_and_module():
    source = "jit(step)/transpose(jvp(DiT))/DiT._forward/blocks/while/body/closed_call/checkpoint/{}mlp/up/dot_general"
    assert program.place(source.format("rematted_computation/")) == "recomputed blocks/mlp/up"
    assert program.place(source.format("")) == "backward blocks/mlp/up"
    assert program.place("jit(step)/jvp(DiT)/blocks/while/body/mlp/tanh") == "forward blocks/mlp"
    assert program.place("jit(step)/add") == "outside"
    rows = program.by_place(program.read(FUSIONS))
    assert [(row.place, row.kernels) for row in rows] == [("(of the compiler)", 20), ("forward blocks/mlp", 10)]
