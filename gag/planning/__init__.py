"""Say before any weights are there whether a run fits, how long it takes, and how much it writes.

In go a project, a domain of it and the devices ("8x80GB", or this machine): of the models only configs and
tokenizers are read, and the domain's rows. Out comes a `Plan`: for each stage its heaviest moment in bytes,
its seconds and its files' bytes, and where it does not fit the settings to change. Start at `plan.py`.
"""
