"""The transformer: what it sees (the plan), its layers, its losses."""
