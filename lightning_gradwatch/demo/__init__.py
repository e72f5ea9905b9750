"""The article's nets, ill and mended, trained in a minute."""
