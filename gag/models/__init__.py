"""Language models: frozen, wrapped, never changed.

In: a model's settings (a folder or an id). Out: a `Backbone` that embeds, runs, and generates; it keeps the
two protocols that the rest is written against, `LanguageModel` (embed, states, logits, facts) and `Generator`
(requests in, tokens out, step by step). `Prompts` turns text into ids without ever making a control token of
it; `Experts` holds many experts over one backbone.
"""
