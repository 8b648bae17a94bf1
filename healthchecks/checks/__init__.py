"""The checks; each module is found by itself. docs/checks.md is generated from them."""
