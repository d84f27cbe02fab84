"""rms_norm(x, weight, eps, out): scale each row to a root mean square of one, then by `weight`.

    out[r, i] = weight[i] * x[r, i] / sqrt(mean_j(x[r, j] ** 2) + eps)

| tensor | shape       | dtype                             |
|--------|-------------|-----------------------------------|
| x      | [rows, dim] | float32, bfloat16, float16        |
| weight | [dim]       | as x                              |
| out    | [rows, dim] | as x; may be x itself             |

The mean and the scaling are in float32; the scaled row is rounded to the dtype of x before `weight`.
"""
