"""Does the fitted model make data like the data, and what does it lose? Predictive draws and checks, evidence, scores for ArviZ."""
