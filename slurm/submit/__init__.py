"""Send packs to where they run on their own: job arrays, files for sbatch, workers that outlive their starter."""
