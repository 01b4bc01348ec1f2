"""BabyAI: its levels and ours, who acts in them, what is said of them, and the recorder."""
