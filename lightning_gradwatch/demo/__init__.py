"""The nets of the article, failing and fixed, trained in front of the user (extra ``demo``)."""
