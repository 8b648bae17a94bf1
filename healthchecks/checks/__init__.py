"""The checks; each module is found by itself. docs/checks/ is generated from them."""
