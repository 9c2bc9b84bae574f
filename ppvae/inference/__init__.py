"""Methods of fitting, one file each, and the Fit that they return."""
