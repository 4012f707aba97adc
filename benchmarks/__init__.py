"""Measure speed and memory, compared with HF PEFT and with runs alone in the same run: `python -m benchmarks`."""
