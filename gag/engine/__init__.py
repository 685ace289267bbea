"""From a question to an answer: route, read the expert, project, inject, and let the frozen base answer.

In: a project's folder (`GAG.open`), or its parts: a base, experts, a router, domains. Out: `Answer`. `pool`
keeps the domains that are asked loaded and follows the folder while running; `domains` plugs them in and out;
`evidence` says whether an answer rests on its vectors.
"""
