"""What is seen of a forward pass, call by call: activation functions, where units are, what leads where."""
