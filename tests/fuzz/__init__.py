"""Every decoder against generated input, for as long as one likes.

`python -m tests.fuzz --seconds 60 yamux` runs one target, without a name all of them in turn.
`test_fuzz.py` runs each for a moment with the other tests (PYFRP_FUZZ_SECONDS).

A target takes bytes, does with them what a peer could make us do, and raises for anything that
must not happen: an exception that is not the peer's fault, a result that depends on how the bytes
were cut, more memory than is allowed. What it returns tells kinds of behaviour apart: input that
shows a new one is kept and varied further.
"""
