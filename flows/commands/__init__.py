"""Commands of `dankai`, a module per group; heavy packages are imported inside functions that use them."""
