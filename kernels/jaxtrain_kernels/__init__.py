"""Device kernels for JAX: one folder an operation, behind one public function each."""
