"""Several processes that train one model: what each of them measures becomes one record, the same on all."""
