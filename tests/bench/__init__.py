"""`make bench`: measure and print the figures of docs/figures.md."""
