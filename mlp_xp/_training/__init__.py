"""Training: the loop over epochs, its history, validation, early stopping, L-BFGS and progress."""
