"""Kernels that take a second to compile, for `test_compilation`."""

from whisper_at.engine.simd import compiled


@compiled()
def double(x):
    for i in range(len(x)):
        x[i] *= 2


@compiled()
def broken(x):
    return x.there_is_no_such_attribute
