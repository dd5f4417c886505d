"""`kubectl trainyard`: what people do that no manifest says. One module a subcommand, listed in `__main__`; each has
`add(subparsers)`, which sets `run`, a coroutine that takes the parsed arguments and a client."""
