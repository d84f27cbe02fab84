"""rope_write_kv(query, key, value, cos, sin, slots, key_pool, value_pool, norms=None): rotate, then store.

Turns query and key of every token by its position and writes the turned key and the value to the token's slot
of the pool. Element i of a head pairs with element i + pairs:

    a', b' = a * cos - b * sin, b * cos + a * sin

| tensor               | shape                                   | dtype                          |
|----------------------|-----------------------------------------|--------------------------------|
| query                | [tokens, heads, head_dim]               | float32, bfloat16, float16     |
| key, value           | [tokens, kv_heads, head_dim]            | as query                       |
| cos, sin             | [tokens, pairs], 2 * pairs <= head_dim  | float32                        |
| slots                | [tokens]                                | int32                          |
| key_pool, value_pool | [blocks, block_size, kv_heads, head_dim]| as query                       |
| norms.query, .key    | [head_dim]                              | as query                       |

query turns in place; key and value are left as they are. Slot s is entry s % block_size of block
s // block_size. Elements of a head from 2 * pairs on do not turn. Turning is in float32. Tokens may lie
apart: query, key and value may be parts of one [tokens, (heads + 2 * kv_heads) * head_dim].

With `norms`, each head of query and key is normalised before it turns, as rms_norm does with that weight and
that eps.
"""
