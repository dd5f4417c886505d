"""Which node gets which index of a gang. Pure: books in, assignment or obstacle out; no clock, no I/O."""
