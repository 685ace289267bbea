"""Judge answers and routes: questions with known answers and domains go in, scores with intervals come out.

`evaluate` answers a project's test rows on the router's route and on the true one, and scores them. `compare`
puts GAG, its controls, retrieval and tuned baselines to the same questions. `routing` judges the router, and
`general` proves that the general route is the base itself, bit for bit. Each returns a frozen dataclass, and
the first three write theirs under runs/ as JSON; a comparison and a routing have a page as well.
"""
