"""How the bundled pocket models were pre-trained: run once, their weights lie under gag/pocket/assets."""
