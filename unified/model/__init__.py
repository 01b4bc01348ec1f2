"""The transformer: what each token sees (the plan), its layers, its losses, its adapters."""
