"""Numbers and weights to a person: the command line, the chain, chat."""
