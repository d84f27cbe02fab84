"""gather_ids(sampled, sources, tokens): fill in ids that were not yet drawn when a step was planned.

    tokens[t] = sampled[sources[t]] where sources[t] >= 0

| tensor  | shape    | dtype                                                                     |
|---------|----------|---------------------------------------------------------------------------|
| sampled | [rows]   | int32: the ids that the step before drew                                  |
| sources | [tokens] | int32: a row of `sampled`; negative leaves the token as it is             |
| tokens  | [tokens] | int32                                                                     |
"""
