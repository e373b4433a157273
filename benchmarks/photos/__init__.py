"""What the benchmark of upscaling uses: test photographs, metrics, peers."""
