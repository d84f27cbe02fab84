"""sample(logits, temperature, top_k, top_p, min_p, seeds, positions, tokens, status): draw one token a row.

| tensor      | shape         | dtype                                                                    |
|-------------|---------------|--------------------------------------------------------------------------|
| logits      | [rows, vocab] | float32; a row's logits are contiguous; not written                      |
| temperature | [rows]        | float32; 0: the greatest logit, the lowest id of equals                  |
| top_k       | [rows]        | int32: so many best tokens are left; 0, or the vocabulary: all           |
| top_p       | [rows]        | float32: of these, the fewest best that reach this share; 1: all         |
| min_p       | [rows]        | float32: of these, those that weigh this share of the best; 0: all       |
| seeds       | [rows]        | int64: the bits of an unsigned seed                                      |
| positions   | [rows]        | int32: where in its sequence the token will stand                        |
| tokens      | [rows]        | int32, written: 0 where there is no token to draw                        |
| status      | [rows]        | int32, written: 0 drawn; 1 not finite: a NaN or +inf; 2 all are -inf     |

Token i weighs exp((logits[i] - greatest) / temperature), the argument rounded to float32 at each step. Better
tokens are those of greater arguments; equal ones rank by id, lowest first. The draw inverts the cumulative
distribution of what the filters leave, in ascending order of ids: the first token whose sum of weights
passes `chance` times the sum of all. The chance has 53 bits: SplitMix64's stream of the seed, entered at the
position. So a row's token depends on that row alone, not on the rows beside it, nor on how many there are.

`status` 2 says that nothing is left; whoever banned nothing may call such logits not finite, too.
"""
