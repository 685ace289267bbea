"""The command line: one verb, one call. Results on stdout, progress and errors on stderr.

In: arguments. Out: what a person reads, or with --json one object as the last line; a user's error is one
line and exit code 2. Nothing heavy is imported before a command's settings, names and paths are checked.
"""
