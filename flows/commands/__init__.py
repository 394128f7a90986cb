"""Commands of `dankai`, one module per group; heavy packages are imported by the functions that use them."""
