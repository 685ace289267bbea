"""The models on other machines: unmodified vLLM servers over HTTP.

In: a project with `engine: remote`. Out: a base, experts and a query encoder that keep the protocols of
`gag.models`, and hold no weights but the base's token embeddings. `servers` speaks to the replicas of one
model; all prompts go to /v1/completions as token ids or as embeddings, so that no text is parsed there.
"""
