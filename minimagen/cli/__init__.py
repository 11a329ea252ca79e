"""The command line: one module per script at the top of the repository, and what they share."""
