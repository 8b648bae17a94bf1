"""A simulated cluster in virtual time around the production engine. All it shows is simulated."""
