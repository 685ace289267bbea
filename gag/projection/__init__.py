"""From what an expert knows to vectors that the base reads.

In: slots [B, S, L, De]. Out: vectors [B, S, Db] in the base's embedding space, by a small trained network
(`projector`), put among a prompt's token embeddings (`injection`). Stage II trains it: `alignment` is the
frozen base's pass over answers, `losses` what is minimised, `trainer` the run; `modules` loads what a domain
folder holds.
"""
