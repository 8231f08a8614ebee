"""How fast a model trains here."""
