"""jaxtrain: train Flax models on a named device mesh, one program from a laptop to a pod."""
