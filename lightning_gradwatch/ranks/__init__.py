"""Several processes that train one model: what each measured becomes one record, the same on all of them."""
