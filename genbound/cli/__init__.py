"""The command line: each command is a few lines onto one function of the package."""
