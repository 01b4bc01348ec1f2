"""The evaluation in BabyAI, where the real environment is the judge."""
