"""What the record knows of the fleet, for people: gathered once, then text, page or document."""
