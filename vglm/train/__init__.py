"""Training; needs the extra `train` (PyTorch). What is trained here runs in `vglm.encoder` and the engine without it."""
