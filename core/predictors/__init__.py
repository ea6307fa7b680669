"""Predictors that turn images into named scores: embedded ones, classifiers of transformers, and words through CLIP."""
