"""embed(tokens, sources, sampled, positions, embedding, inverse_frequencies, scaling, hidden, cos, sin): the
beginning of a step.

    tokens[t] = sampled[sources[t]] where sources[t] >= 0
    hidden[t] = embedding[tokens[t]]
    cos[t, i] = cos(positions[t] * inverse_frequencies[i]) * scaling, and sin alike

| tensor              | shape           | dtype                                                            |
|---------------------|-----------------|------------------------------------------------------------------|
| tokens              | [tokens]        | int32: ids of the vocabulary, once filled in; in place           |
| sources             | [tokens]        | int32: a row of `sampled`; negative leaves the token as it is    |
| sampled             | [rows]          | int32: the ids that the step before drew; there may be none      |
| positions           | [tokens]        | int32                                                            |
| embedding           | [vocab, dim]    | float32, bfloat16, float16                                       |
| inverse_frequencies | [pairs]         | float32: radians a position                                      |
| scaling             | a number        |                                                                  |
| hidden              | [tokens, dim]   | as embedding, or float32; written                                |
| cos, sin            | [tokens, pairs] | float32, written                                                 |

The angle is a product rounded to float32; its cosine is right to 1e-6 at any position.
"""
