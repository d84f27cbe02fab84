"""silu_mul(gate, up, out): the gated activation of an MLP.

    out[r, i] = gate[r, i] / (1 + exp(-gate[r, i])) * up[r, i]

| tensor   | shape       | dtype                                   |
|----------|-------------|-----------------------------------------|
| gate, up | [rows, dim] | float32, bfloat16, float16              |
| out      | [rows, dim] | as gate; may be gate or up itself       |

Rows may lie apart: gate and up may be the halves of one [rows, 2 * dim]. The activation is in float32 and
rounded to the dtype of gate before `up`.
"""
