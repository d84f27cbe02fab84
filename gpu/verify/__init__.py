"""verify(sampled, starts, drafts, accepted): how many of the tokens that rows with drafts sampled stand.

    accepted[r] = 1 + the length of the longest run from starts[r] on where sampled[i] == drafts[i]

| tensor   | shape      | dtype                                                                            |
|----------|------------|----------------------------------------------------------------------------------|
| sampled  | [places]   | int32: for each row, after its last token and after each of its drafts           |
| starts   | [rows + 1] | int32: row r has the places starts[r] .. starts[r + 1] - 1, as many as drafts + 1 |
| drafts   | [places]   | int32: the draft that stands at that place; a row's last one counts for nothing  |
| accepted | [rows]     | int32, written; 0 for a row without places                                       |

A token stands if all drafts before it are what was sampled there; so the first always does.
"""
