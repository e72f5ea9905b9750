"""How a net, its loss and its optimizers are put together, as the first measured steps show it: no number of a rule's, but facts."""
