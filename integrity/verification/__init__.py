"""How a ledger is believed: pins, keys, quick and full verification, proofs.

One rule: nothing is believed because it lies in the store. A size and a root are believed by a signature whose key goes back
to the ledger's public key in the settings, a record by the root, and every object is asked for by a name that follows from a
size; listings only ever add findings. Read `trust` (keys and heads), `quick`, `walk` (many records, hashed once), `full`.
"""
