"""The bundled world: facts, project, pre-training, and the weights made from them."""
