"""The bundled world: two invented domains and public facts, as a project for the pocket models.

In: a seed. Out: a project's folder (`write`): the pocket models and their tokenizer from `assets/`, rows for
each role, and a gag.yaml. `world` draws private facts, `hard` asks for them by aliases and over two
statements, and `public_facts` holds what the base knows. The models were made by tools/pocket.
"""
