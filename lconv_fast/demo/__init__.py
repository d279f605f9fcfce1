"""The jobs of `lconv-fast demo`: digits, speed and equivariance on bundled data, and the report about them."""
