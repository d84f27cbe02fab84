"""rms_norm(x, weight, eps, out, delta=None): scale each row to a root mean square of one, then by `weight`.

    out[r, i] = weight[i] * x[r, i] / sqrt(mean_j(x[r, j] ** 2) + eps)

| tensor | shape       | dtype                                                           |
|--------|-------------|-----------------------------------------------------------------|
| x      | [rows, dim] | float32, or as weight                                           |
| weight | [dim]       | float32, bfloat16, float16                                      |
| out    | [rows, dim] | as weight; may be delta, or without one x itself                |
| delta  | [rows, dim] | as x; where given, x becomes x + delta before it is normalised  |

The mean and the scaling are in float32; the sum with `delta` is rounded to the dtype of x, and so is the
scaled row before `weight`. Where x is float32 and weight is not, there is no `delta`.
"""
