"""Ray clusters: connections, placement, jobs, templates for KubeRay and Slurm."""
