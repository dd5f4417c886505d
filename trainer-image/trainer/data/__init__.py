"""From files of text to batches of tokens: find, tokenise once, map into memory, permute, pack."""
