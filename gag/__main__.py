"""`python -m gag`: the same verbs, also under torchrun and accelerate launch."""

from gag.cli import main

main()
