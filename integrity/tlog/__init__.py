"""Transparency logs as C2SP specifies them (tlog-tiles, signed-note, tlog-checkpoint, tlog-cosignature, tlog-proof,
tlog-witness) over the trees of RFC 6962, so that other people's tools can verify what we write.

One rule: pure. Bytes come in as arguments and through `fetch`, the time and keys are arguments; nothing here opens, asks or
waits. `tree` (hashes and proofs), `tiles` (their objects, and the right edge a writer grows), `note` (signed text),
`checkpoint` (a tree's head as a note), `cosignature` (what a witness says about it), `proof` (one record's proof as a file),
`witness` (the witness as a function of its state).
"""
