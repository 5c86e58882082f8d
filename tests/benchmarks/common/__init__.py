"""What benchmarks share: interleaved timing, and models of the sizes that count."""
