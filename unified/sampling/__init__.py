"""What comes next: one loop over tokens and frames."""
