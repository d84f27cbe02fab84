"""linear(x, weight, bias, out): rows through a matrix stored as checkpoints store it.

    out[r, o] = sum_i x[r, i] * weight[o, i] + bias[o]

| tensor | shape        | dtype                      |
|--------|--------------|----------------------------|
| x      | [rows, in]   | float32, bfloat16, float16 |
| weight | [out, in]    | as x                       |
| bias   | [out] or None| as x                       |
| out    | [rows, out]  | as x                       |

Sums are in float32. The CUDA implementation takes 1..16 rows of bfloat16 or float16, contiguous, with a
multiple of 8 inputs; there a row's result is the same bits whatever the other rows are, and however many.

It also does what a decode step has around a product, in the forms that `source.Form` names; then
`cupy_kernel.FusedLinear(dtype, form)(x, weight, out, bias=None, norm=None, eps=0.0)` is, with y = x or

    normed        y[r, i] = x[r, i] * norm[i] / sqrt(mean_j(x[r, j] ** 2) + eps)
    p[r, o]       = sum_i y[r, i] * weight[o, i] + bias[o],   as many as weight has rows
    Into.OUT      out[r, o] = p[r, o]
    Into.ADDED    out[r, o] += p[r, o]
    Into.GATED    out[r, o] = silu(p[r, o]) * p[r, out + o];  weight is [2 * out, in], gates then ups

`wide_x` (with `normed`) and `wide_out` make x and out float32: a residual stream, or logits. x * norm is
rounded to the dtype of the weight before it is multiplied (so in float16 it must not exceed 65,504), the
result once at the end.
"""
