"""A project on disk, and what works on it.

In: a folder with gag.yaml, `--set` values, and files of rows. Out: `Project` (settings and paths),
`DomainInputs` (one domain's rows, digests and prompts, resolved once), trained folders that are complete or
absent (`artifacts`, `domain`, `run`), and the processes and the terminal that a run has (`distributed`,
`progress`). It knows no model.
"""
