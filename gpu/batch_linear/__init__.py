"""batch_linear(x, weight, bias, out): up to 128 rows through a matrix stored as checkpoints store it.

The contract is that of `gpu.linear`, in the forms

    Form()                                  out[r, o] = p[r, o]
    Form(into=Into.ADDED)                   out[r, o] += p[r, o]
    Form(into=Into.GATED)                   out[r, o] = silu(p[r, o]) * p[r, out + o]; weight is [2 * out, in]

with p[r, o] = sum_i x[r, i] * weight[o, i] + bias[o]. In the first two, `wide_out` makes out float32. Rows
are 1..128 of bfloat16 or float16, with a multiple of 8 inputs. Sums are in float32 and rounded once, at the
end. A row's result is the same bits whatever the other rows are, and however many.
"""
