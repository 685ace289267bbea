"""Model families: small random models in their shapes, what is checked on each, and docs/models.md.

python -m tools.families [FAMILY...]
"""
