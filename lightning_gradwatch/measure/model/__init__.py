"""What a net is made of: layers and sites, how they are called, in which order the data passes them."""
