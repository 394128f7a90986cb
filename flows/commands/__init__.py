"""Commands of `dankai`, a module per group; heavy packages are imported inside the functions that use them."""
