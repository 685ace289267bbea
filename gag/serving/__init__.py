"""Serve a project over HTTP: the protocols of OpenAI's chat completions, completions and responses.

In: requests of clients (`requests`). Out: answers and streams in the shapes that clients know (`replies`),
with what became of each question beside them. `owner` is the one thread that has the models, `api` has the
routes and `admin` those of the domains; `keys` says who may ask what; `metrics` counts.
"""
