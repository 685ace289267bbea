"""The verbs that build a domain: each reads folders and writes a folder."""
