"""Speed of training, sampling and play, beside transfusion-pytorch."""
