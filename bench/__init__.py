"""Measurements of the real thing on the real lab; `python -m bench --list` names them."""
