"""The benchmark suite of lconv_fast, as `lconv-fast bench` runs it. It uses public names only."""
