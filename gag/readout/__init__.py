"""What an expert knows of a question, as slots.

In: an expert, its prompt and questions. The expert writes background knowledge; one forward gives the states
of what it wrote (`states`), or what they predict in the base's own token embeddings (`vocabulary`); pooling
makes slots of them.
Out: `Readout`: slots [B, S, L, De] (or Db wide) and the texts; `store` keeps a split's on disk, part by part.
"""
