"""What a dictionary computes: encoding, losses with hand-written gradients, sparse kernels."""
