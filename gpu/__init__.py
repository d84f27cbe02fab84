"""The house of operations: one folder each, with its contract, its plain torch reference and its cases.

An operation writes into tensors that it is given and returns nothing, so an implementation on a device never
allocates and can be captured in a graph. The contract is the docstring of the folder; `reference.py` is what
every implementation is compared with. Nothing here knows of the server around it.
"""
