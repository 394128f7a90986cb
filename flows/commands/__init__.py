"""Commands of `dankai`, a module per group; heavy packages are imported by the functions that use them."""
