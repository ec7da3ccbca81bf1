"""What tests share: references, models, jobs for other processes."""
