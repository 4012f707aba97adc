"""Speed and memory beside HF PEFT and beside runs alone, measured side by side in one run: `python -m benchmarks`."""
