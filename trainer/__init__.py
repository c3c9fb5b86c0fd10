"""The program: prepare, train, evaluate and predict.  It knows nothing of pipelines."""
