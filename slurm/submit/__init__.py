"""Submit packs to where they run on their own: job arrays, files for sbatch, workers that outlive the command."""
