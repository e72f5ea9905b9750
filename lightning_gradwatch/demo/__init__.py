"""The nets of the article, ill and mended, trained in front of the user (extra ``demo``)."""
