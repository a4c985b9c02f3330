"""Many requests on one model: engine, worker, text in and text out, the shelf of loaded models."""
