"""What the compilation report (`attnzoo.kernels.aot`) knows of machine code, and of the time that it takes."""
