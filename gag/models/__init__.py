"""Language models: frozen, wrapped, never changed.

In: a model's settings (a folder or an id). Out: a `Backbone` that embeds, runs, and generates; it keeps the
two protocols that the rest is written against, `LanguageModel` (embed, states, logits, facts) and `Generator`
(requests in, tokens out, step by step). A model is tried when it is loaded (`dry_run`). `Prompts` turns text
into the template's own ids, and never into a control token; `Experts` holds many experts over one backbone.
"""
