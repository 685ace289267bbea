"""`python -m gag`: the same verbs, also under torchrun and accelerate launch."""

from gag.commands.app import main

main()
