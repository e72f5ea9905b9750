"""TensorBoard's event files: what we write into them, and what is read of them."""
