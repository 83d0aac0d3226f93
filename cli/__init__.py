"""The command line and what it shows: verbs, recipes, chat and the playground."""
