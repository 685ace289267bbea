"""Where a question goes: to a domain, or to the base alone. Nothing here is trained.

In: questions, and one bank of each domain (`bank`: prototypes and additive statistics of its questions). A
query encoder (`query_encoder`, `encoders`) makes vectors; `rules` score them; `calibration` decides on
held-out vectors which rule, and how far a specialist must lie above general; `router` routes; `state` keeps
the decision for a set of domains on disk.
Out: `Route`: a domain or general, its score, and why.
"""
